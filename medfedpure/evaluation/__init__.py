"""Evaluation: what a defence is worth, by attackers who see ever more of it, and when not to believe the answer."""
