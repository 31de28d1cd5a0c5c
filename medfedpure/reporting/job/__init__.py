"""reporting/job"""
