"""A decision depends on its own image only, whatever stands beside it: every detector, any batch."""

import pytest
import torch
from conftest import Workshop
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medfedpure.core.registry import registry
from medfedpure.defence.calibration import Calibration

IMAGES = 6
TOLERANCE = 1e-5
batches = st.lists(st.integers(0, IMAGES - 1), min_size=1, max_size=9)


@pytest.fixture(scope="module", params=[record.name for record in registry().plugins("detector")])
def alone(request, workshop: Workshop):
    """A fitted detector, its setting, and its score of each image alone."""
    if workshop.missing_extra("detector", request.param) is not None:
        pytest.skip(f"{request.param} is not installed")
    detector, setting = workshop.component("detector", request.param), workshop.setting
    with torch.no_grad():
        scores = [_score(detector, setting, [place]) for place in range(IMAGES)]
    return detector, setting, torch.cat(scores)


def _score(detector, setting, places):
    part = setting.select(torch.tensor(places))
    with torch.no_grad():
        return detector(part.images, context=part.context, streams=part.streams)


@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(places=batches)
def test_scores_and_decisions_are_those_of_the_image_alone(alone, places):
    detector, setting, scores = alone
    found, wanted = _score(detector, setting, places), scores[torch.tensor(places)]
    size = max(1.0, float(scores.abs().max()))
    assert float((found - wanted).abs().max()) <= TOLERANCE * size, f"scores depend on the batch {places}"
    calibration = Calibration.fit(scores, 0.3)
    near = (wanted.double() - calibration.threshold()).abs() <= TOLERANCE * size
    assert bool((calibration.flagged(found) == calibration.flagged(wanted))[~near].all()), "decisions differ"
