from medfedpure import Plugin, hookimpl


@hookimpl
def medfedpure_plugins():
    yield Plugin("detector", "laplacian_energy", "laplacian_energy.detector:LaplacianEnergy", "high-frequency residual")
