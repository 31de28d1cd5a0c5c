"""consortium"""
