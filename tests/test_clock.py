"""The clock of full steps that rows are compared by."""

import fresco
from fresco.reference import MAX_TOKENS
from fresco.reference.clock import step_clock
from tests.conftest import FRESCO_5


def test_a_full_step_is_the_median_of_three_plain_passes_for_all_pictures(
    tiny_flux_pipe, monkeypatch
):
    seen, forward = [], type(tiny_flux_pipe.transformer).forward

    def recorded(transformer, **call):
        seen.append((call["hidden_states"].shape[:2], call["encoder_hidden_states"].shape[:2]))
        assert transformer is not tiny_flux_pipe.transformer
        return forward(transformer, **call)

    monkeypatch.setattr(type(tiny_flux_pipe.transformer), "forward", recorded)
    clock = iter((10, 19, 23, 25))  # the first step is slow
    monkeypatch.setattr("fresco.timing.time.perf_counter", lambda: next(clock))
    seconds_of = step_clock(tiny_flux_pipe)
    with fresco.accelerate(tiny_flux_pipe, FRESCO_5):
        assert seconds_of(3) == 4
    assert seen == 3 * [((3, 64), (3, MAX_TOKENS))]
