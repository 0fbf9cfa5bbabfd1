"""The codec of a GPU's hours: an autoencoder with a hyperprior, trained for the time that is given."""

from __future__ import annotations

from dataclasses import asdict

from worker.images.hyperprior import encoder, training
from worker.images.hyperprior.fixed import MIDDLE
from worker.images.hyperprior.model import dumped
from worker.images.hyperprior.network import Shape
from worker.images.hyperprior.packing import packed
from worker.images.learned import state as states
from worker.images.learned.fits import Fit, Lesson


def fit(lesson: Lesson) -> Fit:
    step, images = lesson.step, [p.pixels for p in lesson.learned]
    widths, latents, side = training.SHAPES[lesson.device]
    begun = training.begun(Shape(images[0].shape[2], widths, latents, side), lesson.device, lesson.seed)
    if lesson.resume is not None and (told := states.restore(lesson.resume, begun.network, begun.descent)):
        begun.course = training.Course(**told)

    def keep(state: training.State) -> None:
        states.save(lesson.state, state.network, state.descent, asdict(state.course), {})

    training.train(
        begun, images, [p.pixels for p in lesson.held_out[:4]], 60 * step.minutes, step.worth, step.distortion, lesson.seed, lesson.device, keep=keep, tick=lesson.tick
    )
    network = encoder.halved(begun.network.cpu())
    course = begun.course
    told = {
        "seconds": round(course.seconds, 1), "steps": course.steps, "distortion": step.distortion, "widths": list(widths), "latents": latents, "side": side, "quality": MIDDLE,
        "curve": course.curve, "encoder_bytes": len(written := encoder.dumped(network)),
    }  # fmt: skip
    notes = ["loss of the curve: bits a pixel + lambda * distortion over qualities about the middle; held_out: estimated bits a pixel, PSNR and MS-SSIM at the middle"]
    return Fit(dumped(packed(network, images)), written, told, notes)
