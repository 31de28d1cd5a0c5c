"""From parts trained across clients to a defence at each of them: its images, its fit, checks before it, its record."""
