"""What a transformer sees and says in a run, and what a step makes of that."""

from __future__ import annotations

import functools
import inspect

import torch

CALLED = (("hidden_states", "x"), ("timestep", "t"))  # what families call the two


def stack(latents):
    """A list of [c, 1, h, w] as [b, c, h, w]; tensors as they are."""
    return torch.stack(latents).squeeze(2) if isinstance(latents, list) else latents


class Watch:
    """What the transformer sees and says, of every pass."""

    def __init__(self, pipe, is_frames_first=False):
        self.seen, self.said, self.times = [], [], []
        forward = pipe.transformer.forward
        names = list(inspect.signature(forward).parameters)

        @functools.wraps(forward)
        def spied(*args, **kwargs):
            call = dict(zip(names, args, strict=False)) | kwargs
            output = forward(*args, **kwargs)
            latents, time = (call[a] if a in call else call[b] for a, b in CALLED)
            seen, said = stack(latents), stack(output[0])
            if is_frames_first:
                seen, said = seen.transpose(1, 2), said.transpose(1, 2)
            self.seen.append(seen.clone())
            self.times.append(float(time.flatten()[0]))
            self.said.append(said.clone())
            return output

        pipe.transformer.forward = spied


def guided(family, said):
    """One step's prediction, guided as the pipeline does."""
    doubled = family.asked().get("guidance_scale") and family.passes == 1
    if family.is_prompt_first:
        given, without = said[0].chunk(2)
        return -(given + family.asked()["guidance_scale"] * (given - without))
    if doubled:
        without, given = said[0].chunk(2)
    elif family.passes == 2:
        given, without = said
    else:
        return said[0]
    scale = family.asked()["guidance_scale"] + family.adds_to_prompt
    prediction = without + scale * (given - without)
    return -prediction if family.is_negated else prediction


def coefficients(family, scheduler, time):
    """Signal and noise in latents at a time, in steps of the scheduler or as `clock` says."""
    if family.prediction == "flow":
        sigma = (time, time / 1000, 1 - time, 1 - time / 1000)[family.clock]
        return 1 - sigma, sigma
    kept = float(scheduler.alphas_cumprod[int(time)])
    return kept**0.5, (1 - kept) ** 0.5


def parts(family, x, said, signal, noise):
    """Clean latents and noise, out of latents and what is predicted for them."""
    if family.prediction == "flow":
        return x - noise * said, x + signal * said
    if family.prediction == "epsilon":
        return (x - noise * said) / signal, said
    return signal * x - noise * said, noise * x + signal * said
