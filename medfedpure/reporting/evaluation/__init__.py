"""reporting/evaluation"""
