"""Does the suite still catch what matters? Faults are planted one by one, and tests must fail.

    python -m tests.planted_faults [NAME ...] [--jobs N] [--list] [--sound] [--table FILE]

Each fault is one small edit that computes something wrong without a word, as a slip of the hand
would. It is planted in a copy of this checkout, where the tests that should see it are run.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# All that a test may look at.
COPIED = (
    "benchmarks", "docs", "docs_tools", "experiments", "notebooks", "odejax", "tests",
    "Makefile", "README.md", "pyproject.toml", "zensical.toml",
)  # fmt: skip
LIMIT = 1800  # seconds; a fault may make a loop endless
FAILED = re.compile(r"^(?:FAILED|ERROR) (tests/[^\[\s]+)", re.MULTILINE)  # without parameters


@dataclass(frozen=True)
class Fault:
    """In `file`, below odejax/, the text `old`, found there once, becomes `new`.

    `tests`: what should notice, files or single tests of theirs, the cheapest first.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


FAULTS = [
    # Threat models
    Fault(
        "The l2 projection is not clipped to the box",
        "_threat_model.py",
        "self.clip(x + self.shrink(x_adv - x))",
        "x + self.shrink(x_adv - x)",
        ("tests/test_threat_model.py",),
    ),
    Fault(
        "The l-infinity projection is around the iterate",
        "_threat_model.py",
        "jnp.clip(x_adv, x - self.eps, x + self.eps)",
        "jnp.clip(x_adv, x_adv - self.eps, x_adv + self.eps)",
        ("tests/test_threat_model.py",),
    ),
    Fault(
        "The steepest l2 step has norm 1 in l-infinity",
        "_threat_model.py",
        "return gradient / _positive(self.norm(gradient))",
        "return gradient",
        ("tests/test_threat_model.py",),
    ),
    Fault(
        "The dual norm of l-infinity is itself",
        "_threat_model.py",
        "return jnp.sum(jnp.abs(gradient))",
        "return jnp.max(jnp.abs(gradient))",
        ("tests/test_reach.py", "tests/test_attacks_white_box.py"),
    ),
    Fault(
        "Samples crowd at the centre of the l2 ball",
        "_threat_model.py",
        "jax.random.uniform(radius_key, dtype=x.dtype) ** (1 / x.size)",
        "jax.random.uniform(radius_key, dtype=x.dtype)",
        ("tests/test_threat_model.py",),
    ),
    Fault(
        "Gains in the box are taken on the wrong side",
        "_threat_model.py",
        "return up @ rise + down @ fall",
        "return up @ fall + down @ rise",
        ("tests/test_threat_model.py", "tests/test_certificates.py"),
    ),
    Fault(
        "The move to a hyperplane ends outside the box",
        "_threat_model.py",
        "return jnp.sign(w) * jnp.minimum(size * rate, room)",
        "return jnp.sign(w) * size * rate",
        ("tests/test_reach.py",),
    ),
    # Attacks
    Fault(
        "PGD steps from the image each time",
        "attacks/pgd.py",
        "ball.project(x_adv + self.size(ball) * ball.steepest(momentum), problem.x)",
        "ball.project(problem.x + self.size(ball) * ball.steepest(momentum), problem.x)",
        ("tests/test_attacks_white_box.py",),
    ),
    Fault(
        "The last image is kept instead of the worst",
        "attacks/iterative.py",
        "(margin < self.margin) & inside, reached)",
        "jnp.asarray(inside), reached)",
        ("tests/test_attacks_contract.py::test_pgd_keeps_the_worst_iterate_not_the_last",),
    ),
    Fault(
        "Images count that the attack says are none of its own",
        "attacks/iterative.py",
        "(margin < self.margin) & inside, reached)",
        "margin < self.margin, reached)",
        ("tests/test_attacks_black_box.py", "tests/test_attacks_white_box.py"),
    ),
    Fault(
        "The nearest image may be as far as it likes",
        "attacks/iterative.py",
        "(margin < 0) & reached & (distance < best_distance)",
        "(margin < 0) & (distance < best_distance)",
        ("tests/test_attacks_black_box.py", "tests/test_attacks_white_box.py"),
    ),
    Fault(
        "Momentum decays the gradient",
        "attacks/momentum.py",
        "return decay * momentum + gradient / jnp.where(size > 0, size, 1.0)",
        "return momentum + decay * gradient / jnp.where(size > 0, size, 1.0)",
        ("tests/test_attacks_white_box.py",),
    ),
    Fault(
        "Auto-PGD halves its step but does not go back",
        "attacks/apgd.py",
        "origin = jnp.where(reduce, best, x_adv)",
        "origin = x_adv",
        ("tests/test_attacks_white_box.py",),
    ),
    Fault(
        "Auto-PGD's checkpoints confuse two lengths",
        "attacks/apgd.py",
        "length = max(length - shorter, shortest)",
        "length = max(length - shortest, shorter)",
        ("tests/test_attacks_white_box.py",),
    ),
    Fault(
        "A targeted cross-entropy moves away from its class",
        "attacks/losses.py",
        "return loss if target is None else -loss",
        "return loss",
        ("tests/test_attacks_white_box.py",),
    ),
    Fault(
        "DLR is divided by the gap to the second logit",
        "attacks/losses.py",
        "lower = top[2] if target is None",
        "lower = top[1] if target is None",
        ("tests/test_attacks_white_box.py",),
    ),
    Fault(
        "The margin is to zero where other logits are negative",
        "attacks/base.py",
        "others = jnp.where(jnp.arange(len(logits)) == y, -jnp.inf, logits)",
        "others = jnp.where(jnp.arange(len(logits)) == y, 0.0, logits)",
        ("tests/test_attacks_contract.py::test_the_margin_is_to_the_runner_up",),
    ),
    Fault(
        "The judge's query is not counted",
        "attacks/base.py",
        "queries=jnp.asarray(queries + 1)",
        "queries=jnp.asarray(queries)",
        ("tests/test_attacks_black_box.py",),
    ),
    Fault(
        "A mean over draws counts as one query",
        "attacks/iterative.py",
        "return logits_fn.draws * _cost(logits_fn.logits_fn) if",
        "return _cost(logits_fn.logits_fn) if",
        (
            "tests/test_attacks_compose.py::test_queries_of_attacks_made_from_attacks_are_those_really_made",
        ),
    ),
    Fault(
        "EOT takes the loss of the mean for the mean loss",
        "attacks/iterative.py",
        "return jnp.mean(losses), jnp.mean(logits_of_draws, axis=0)",
        "mean = jnp.mean(logits_of_draws, axis=0)\n"
        "                return loss(mean, self.y, self.target), mean",
        (
            "tests/test_attacks_compose.py::test_an_averaged_gradient_is_the_mean_of_those_of_the_draws",
        ),
    ),
    Fault(
        "All restarts draw the same start",
        "attacks/iterative.py",
        "jax.random.split(jax.random.fold_in(key, run))",
        "jax.random.split(key)",
        (
            "tests/test_attacks_compose.py::test_restarts_return_the_worst_of_runs_with_keys_of_their_own",
        ),
    ),
    Fault(
        "An image's own class is among the targets",
        "attacks/compose.py",
        "target = ranking[rank % (len(logits) - 1)]",
        "target = ranking[rank % len(logits)]",
        (
            "tests/test_attacks_compose.py::test_classes_that_come_again_start_elsewhere",
            "tests/test_attacks_compose.py::test_of_a_network_with_noise_every_class_is_aimed_at",
        ),
    ),
    Fault(
        "A sequence returns the image of its last attack",
        "attacks/autoattack.py",
        "adversarial = jnp.where(margin < smallest, x_adv, adversarial)",
        "adversarial = x_adv",
        (
            "tests/test_attacks_compose.py::test_a_sequence_on_one_example_returns_the_worst_of_its_parts",
        ),
    ),
    Fault(
        "Square shrinks one query late",
        "attacks/square.py",
        "jnp.floor(i * scale) > jnp.asarray(_HALVINGS)",
        "jnp.floor((i - 1) * scale) > jnp.asarray(_HALVINGS)",
        ("tests/test_attacks_black_box.py",),
    ),
    Fault(
        "Square goes on from what it has tried last",
        "attacks/square.py",
        "change(best, x, ball,",
        "change(x_adv, x, ball,",
        ("tests/test_attacks_black_box.py",),
    ),
    Fault(
        "FAB projects as if from another point",
        "attacks/fab.py",
        "-difference - jnp.sum(w * (start - x_adv))",
        "-difference + jnp.sum(w * (start - x_adv))",
        ("tests/test_attacks_white_box.py",),
    ),
    Fault(
        "FAB steps back by what it should keep",
        "attacks/fab.py",
        "back = x + self.beta * (x_adv - x)",
        "back = x + (1 - self.beta) * (x_adv - x)",
        ("tests/test_attacks_white_box.py",),
    ),
    Fault(
        "DeepFool goes to the smallest gap, not the nearest boundary",
        "attacks/deepfool.py",
        "jnp.where(candidates == problem.y, jnp.inf, distance))",
        "jnp.where(candidates == problem.y, jnp.inf, gap))",
        ("tests/test_attacks_white_box.py",),
    ),
    Fault(
        "Carlini and Wagner remember a success of an earlier round",
        "attacks/carlini_wagner.py",
        "success & ~end_of_round, adversarial)",
        "success, adversarial)",
        ("tests/test_attacks_white_box.py",),
    ),
    Fault(
        "The Boundary Attack's step to the source never adapts alone",
        "attacks/boundary.py",
        "source_step=state.source_step * both_factor * source_factor",
        "source_step=state.source_step * both_factor",
        ("tests/test_attacks_black_box.py",),
    ),
    Fault(
        "SPSA's differences are over half their width",
        "attacks/spsa.py",
        "(state.value - value) / (2 * self.delta)",
        "(state.value - value) / self.delta",
        ("tests/test_attacks_black_box.py",),
    ),
    Fault(
        "The default step is that of one ball",
        "attacks/base.py",
        "return 2.5 * ball.eps / steps",
        "return 2.5 * 0.1 / steps",
        ("tests/test_attacks_white_box.py", "tests/test_attacks_contract.py"),
    ),
    Fault(
        "SPSA's queries lie outside the box",
        "attacks/spsa.py",
        "jnp.clip(state.x_adv, lower, upper)",
        "state.x_adv",
        ("tests/test_attacks_black_box.py",),
    ),
    Fault(
        "How surely an image is broken does not depend on the size of the logits",
        "attacks/iterative.py",
        "margin < -_SURELY * size, self.sure",
        "margin < -_SURELY, self.sure",
        ("tests/test_evaluation.py",),
    ),
    Fault(
        "Half precision is taken for float32 by the flags",
        "evaluation/probes.py",
        "return 8 * max(float(jnp.finfo(dtype).eps) for dtype in dtypes)",
        "return 8 * float(jnp.finfo(dtypes[0]).eps)",
        ("tests/test_flags.py",),
    ),
    Fault(
        "Logits that are not finite outside the ball end an evaluation",
        "attacks/iterative.py",
        "(finite_logits(logits) | ~reached)",
        "finite_logits(logits)",
        ("tests/test_evaluation.py",),
    ),
    Fault(
        "An image without a start is taken for an attacked one",
        "attacks/boundary.py",
        "query, logits, ~searching | fooled)",
        "query, logits)",
        ("tests/test_attacks_black_box.py",),
    ),
    # Certificates and Lipschitz bounds
    Fault(
        "The Lipschitz margin lacks its sqrt(2)",
        "certificates/lipschitz_margin.py",
        "return 2**0.5 * model.lipschitz_bound()",
        "return model.lipschitz_bound()",
        ("tests/test_certificates.py",),
    ),
    Fault(
        "Nothing is taken off a margin for rounding",
        "certificates/base.py",
        "logits[label] - logits - logit_rounding(logits) - lost",
        "logits[label] - logits - lost",
        ("tests/test_certificates.py",),
    ),
    Fault(
        "A radius is carried to the other norm the wrong way",
        "certificates/base.py",
        "norm(1.0).covering_radius(type(ball)(1.0), size)",
        "type(ball)(1.0).covering_radius(norm(1.0), size)",
        ("tests/test_certificates.py",),
    ),
    Fault(
        "The votes that choose the class bound its probability, too",
        "certificates/randomized_smoothing.py",
        "predictor.votes(x, self.n, key=bound_key)",
        "predictor.votes(x, self.n, key=choice_key)",
        ("tests/test_smoothing.py::test_at_most_a_share_alpha_of_10_000_radii_is_too_large",),
    ),
    Fault(
        "The confidence bound is two-sided",
        "certificates/randomized_smoothing.py",
        "betaincinv(count, n - count + 1, alpha)",
        "betaincinv(count, n - count + 1, alpha / 2)",
        ("tests/test_smoothing.py::test_the_bound_is_that_of_scipy_rounded_down",),
    ),
    Fault(
        "A smoothed radius is rounded to the nearest number",
        "certificates/randomized_smoothing.py",
        "np.nextafter(rounded, np.float32(0))",
        "rounded",
        ("tests/test_smoothing.py::test_the_bound_is_that_of_scipy_rounded_down",),
    ),
    Fault(
        "A smoothed radius grows with sigma squared",
        "certificates/randomized_smoothing.py",
        "predictor.sigma * unit",
        "predictor.sigma**2 * unit",
        (
            "tests/test_smoothing.py::test_the_radius_of_a_linear_network_is_the_analytic_one_within_its_confidence",
        ),
    ),
    Fault(
        "A vote that is too close has a class",
        "certificates/randomized_smoothing.py",
        "jnp.where(unit > 0, choice, jnp.nan)",
        "choice",
        ("tests/test_smoothing.py::test_an_abstention_is_no_certificate_of_any_ball",),
    ),
    Fault(
        "The confidence for many images is that of one",
        "certificates/randomized_smoothing.py",
        "return self.alpha / self.images",
        "return self.alpha",
        ("tests/test_smoothing.py::test_a_confidence_for_many_images_is_a_smaller_alpha_for_each",),
    ),
    Fault(
        "The images of a certificate share their noise",
        "evaluation/certified_radii.py",
        "key=jax.random.fold_in(key, i)",
        "key=key",
        ("tests/test_smoothing.py::test_each_image_has_draws_of_its_own",),
    ),
    Fault(
        "The noise of a vote has the variance sigma",
        "_smoothing.py",
        "self.sigma * jax.random.normal",
        "self.sigma**0.5 * jax.random.normal",
        (
            "tests/test_smoothing.py::test_the_shares_are_the_probabilities_of_the_normal_distribution",
        ),
    ),
    Fault(
        "A vote is of pixels in [0, 1] alone",
        "_smoothing.py",
        "checked(x + noise, key=own_key)",
        "checked(jnp.clip(x + noise, 0, 1), key=own_key)",
        (
            "tests/test_smoothing.py::test_the_shares_are_the_probabilities_of_the_normal_distribution",
        ),
    ),
    Fault(
        "The noise within a network is the same in every vote",
        "_smoothing.py",
        "checked(x + noise, key=own_key)",
        "checked(x + noise, key=key)",
        ("tests/test_smoothing.py::test_the_vote_is_that_of_draws_counted_one_by_one",),
    ),
    Fault(
        "Draws that fill the last chunk vote, too",
        "_smoothing.py",
        "(draws < n)[:, None]",
        "(draws < n + size)[:, None]",
        ("tests/test_smoothing.py::test_the_vote_is_that_of_draws_counted_one_by_one",),
    ),
    Fault(
        "A confident network loses the gradient of its vote",
        "_smoothing.py",
        "jnp.diag(jnp.sum(pairs, axis=1))",
        "jnp.diag(p * (1 - p))",
        ("tests/test_smoothing.py::test_a_confident_network_keeps_its_gradient",),
    ),
    Fault(
        "A certified vote that an attack turned by chance stops a bracket",
        "evaluation/bracket_steps.py",
        "np.where(self._turned_by_chance(record, radius), 0.0, radius)",
        "radius",
        (
            "tests/test_smoothing.py::test_a_close_vote_is_not_counted_and_a_clear_one_refutes_the_certificate",
        ),
    ),
    Fault(
        "A certificate of a vote is never refuted",
        "evaluation/bracket_steps.py",
        "binom.cdf(np.round(draws * share), draws, 0.5) > _CHANCE",
        "True",
        (
            "tests/test_smoothing.py::test_a_close_vote_is_not_counted_and_a_clear_one_refutes_the_certificate",
        ),
    ),
    Fault(
        "A wrong prediction is certified",
        "certificates/base.py",
        "(label == y) & (radius >= ball.eps)",
        "radius >= ball.eps",
        ("tests/test_certificates.py",),
    ),
    Fault(
        "The stable mapping divides by lambda",
        "certificates/stable_mapping.py",
        "jnp.sum(jnp.abs(layer.weight), axis=1)) / (lam - 1)",
        "jnp.sum(jnp.abs(layer.weight), axis=1)) / lam",
        ("tests/test_certificates.py",),
    ),
    Fault(
        "Neurons move by the largest weight, not by the sum",
        "certificates/stable_mapping.py",
        "jax.vmap(unit.dual_norm)(first)",
        "jax.vmap(unit.norm)(first)",
        ("tests/test_certificates.py",),
    ),
    Fault(
        "nmODE's slope bound has lambda for lambda - 1",
        "models/nmode.py",
        "rate, t1 = float(self.lam) - 1, float(self.t1)",
        "rate, t1 = float(self.lam), float(self.t1)",
        ("tests/test_flow_map.py", "tests/test_certificates.py"),
    ),
    Fault(
        "Linear relaxation counts gains for losses",
        "relaxation/margins.py",
        "down, up = self.ball.largest_gain(x, -rows), ",
        "down, up = self.ball.largest_gain(x, rows), ",
        ("tests/test_relaxation.py",),
    ),
    Fault(
        "Lines ignore what bends between two nodes",
        "relaxation/elementwise.py",
        "between = (spacing + ulp) ** 2 / 8 * self.curvature + ulp * self.steepest",
        "between = ulp * self.steepest",
        ("tests/test_relaxation.py",),
    ),
    Fault(
        "A curve is as high as its samples",
        "relaxation/elementwise.py",
        "jnp.maximum(rest[:, :-1], rest[:, 1:]) + jnp.where(sign < 0, beyond, 0.0)",
        "jnp.maximum(rest[:, :-1], rest[:, 1:])",
        ("tests/test_activations.py",),
    ),
    Fault(
        "Tangents are taken at the wrong ends of a piece",
        "relaxation/elementwise.py",
        "down, up = jnp.maximum(-tilts[:, :-1], 0.0), jnp.maximum(tilts[:, 1:], 0.0)",
        "up, down = jnp.maximum(tilts[:, :-1], 0.0), jnp.maximum(-tilts[:, 1:], 0.0)",
        ("tests/test_activations.py",),
    ),
    Fault(
        "GELU has no minimum",
        "relaxation/elementwise.py",
        "(-0.7517915246935646,)",
        "()",
        ("tests/test_activations.py",),
    ),
    Fault(
        "A power between 0 and 1 is convex",
        "relaxation/elementwise.py",
        "sign=-1 if 0 < exponent < 1 else 1",
        "sign=1",
        ("tests/test_activations.py",),
    ),
    Fault(
        "Any z sigmoid(y) is SiLU",
        "relaxation/activations.py",
        "return self.meant[a] is b",
        "return True",
        ("tests/test_activations.py",),
    ),
    Fault(
        "An activation swallows a value that is used elsewhere",
        "relaxation/activations.py",
        "return all(uses[v] == used_by[v] for e in equations[:-1] for v in e.outvars)",
        "return True",
        ("tests/test_activations.py",),
    ),
    Fault(
        "A case below 0 is taken above it",
        "relaxation/handlers.py",
        "value, by, above = by, value, not above",
        "value, by = by, value",
        ("tests/test_relaxation.py",),
    ),
    Fault(
        "A smallest entry is a largest one",
        "relaxation/handlers.py",
        "return [graph.scaled(largest, -1.0)]",
        "return [largest]",
        ("tests/test_relaxation.py",),
    ),
    Fault(
        "A branch is taken that is not the one",
        "relaxation/walk.py",
        "taken = branches[int(np.clip(index, 0, len(branches) - 1))]",
        "taken = branches[0]",
        ("tests/test_relaxation.py",),
    ),
    Fault(
        "A missing rule is where the certificate is called",
        "relaxation/no_rule.py",
        "line = next((f for f in frames if not _is_of_a_library(f)), frames[0])",
        "line = frames[-1]",
        ("tests/test_no_rule.py",),
    ),
    Fault(
        "Rows take the other line",
        "relaxation/rules.py",
        "moved, offset = up * low_slope + down * high_slope, times",
        "moved, offset = up * high_slope + down * low_slope, times",
        ("tests/test_relaxation.py",),
    ),
    Fault(
        "Bounds forget a bias on the way back",
        "relaxation/rules.py",
        "zero if by.middle is None else rows @ jnp.ravel(by.middle)",
        "zero",
        ("tests/test_relaxation.py",),
    ),
    Fault(
        "The radius of an affine operation has its coefficients' signs",
        "relaxation/handlers.py",
        "jnp.abs(v) if scaling",
        "v if scaling",
        ("tests/test_relaxation.py",),
    ),
    Fault(
        "McCormick's planes are on the wrong sides",
        "relaxation/rules.py",
        "made(-along_x * along_y, reach + lost)",
        "made(-along_x * along_y, lost - reach)",
        ("tests/test_relaxation.py",),
    ),
    Fault(
        "A tightened upper end has the lower one's sign",
        "relaxation/propagate.py",
        "jnp.where(sign < 0, -low, jnp.inf)",
        "jnp.where(sign < 0, low, jnp.inf)",
        ("tests/test_relaxation.py",),
    ),
    Fault(
        "An upper end is taken from lines that are not parallel",
        "relaxation/propagate.py",
        "above = jnp.where(parallel, high, ",
        "above = jnp.where(True, high, ",
        ("tests/test_relaxation.py",),
    ),
    Fault(
        "Above a kink runs the line below it",
        "relaxation/elementwise.py",
        "lines._replace(low_slope=lines.high_slope)",
        "lines._replace(high_slope=lines.low_slope)",
        ("tests/test_relaxation.py",),
    ),
    Fault(
        "Rows go through a loop from its first turn to its last",
        "relaxation/propagate.py",
        "(loop.items, kept), reverse=True)",
        "(loop.items, kept))",
        ("tests/test_relaxation.py",),
    ),
    Fault(
        "A network's loop counts as one turn of it",
        "certificates/best.py",
        "count += node.rule.length * _neurons(node.rule.at(0))",
        "count += _neurons(node.rule.at(0))",
        ("tests/test_best.py",),
    ),
    Fault(
        "A network of any size is certified by CROWN",
        "certificates/best.py",
        '"CROWN" if neurons <= max_neurons else',
        '"CROWN" if neurons >= 0 else',
        ("tests/test_best.py",),
    ),
    Fault(
        "In turn, a certificate is run on images of the ball before that were not certified",
        "evaluation/bracket_steps.py",
        "                    in_doubt &= True if smaller is None else smaller.certified_correct",
        "                    in_doubt &= True",
        ("tests/test_best.py",),
    ),
    Fault(
        "In turn, every certificate is run on images in doubt alone",
        "evaluation/bracket_steps.py",
        "if in_turn and (i > 0 or isinstance(certificate, AbstractBoundPropagation)):",
        "if in_turn:",
        ("tests/test_best.py",),
    ),
    Fault(
        "In turn, a certificate counts only what it was run on",
        "evaluation/ball_record.py",
        "counted = self.certified_correct if in_turn else proven",
        "counted = proven",
        ("tests/test_best.py",),
    ),
    Fault(
        "Certificates that are given count what another one proved",
        "evaluation/ball_record.py",
        "counted = self.certified_correct if in_turn else proven",
        "counted = self.certified_correct",
        ("tests/test_evaluation.py",),
    ),
    Fault(
        "Images of small margins are certified first",
        "evaluation/bracket_steps.py",
        "np.argsort(-self.margins",
        "np.argsort(self.margins",
        ("tests/test_best.py",),
    ),
    Fault(
        "A search ends with a batch that has one image without a proof",
        "evaluation/certified_radii.py",
        "not proven[first:].any()",
        "not proven[first:].all()",
        ("tests/test_best.py",),
    ),
    Fault(
        "A bracket does not say why nothing is certified",
        "evaluation/bracket.py",
        "limits = certificates.limits if in_turn else ()",
        "limits = ()",
        ("tests/test_best.py",),
    ),
    Fault(
        "Images that no radius is sought for have the radius of others",
        "evaluation/certified_radii.py",
        "batch = sought[rows]",
        "batch = rows",
        ("tests/test_best.py",),
    ),
    Fault(
        "A margin that is no number is a proof",
        "relaxation/margins.py",
        "jnp.where(jnp.isfinite(bound), bound, -jnp.inf)",
        "jnp.where(jnp.isfinite(bound), bound, jnp.inf)",
        ("tests/test_relaxation.py",),
    ),
    Fault(
        "The line below a kink may have any slope",
        "relaxation/elementwise.py",
        "below = jnp.clip(self.a + (1 - self.a) * tilt, self.a, 1.0)",
        "below = self.a + (1 - self.a) * tilt",
        ("tests/test_verify.py::test_every_tilt_is_a_line_below_a_kink",),
    ),
    Fault(
        "A split's multiplier has the wrong sign",
        "relaxation/rules.py",
        "moved - used, offset",
        "moved + used, offset",
        ("tests/test_verify.py::test_any_tilts_and_multipliers_bound_a_subdomain",),
    ),
    Fault(
        "A multiplier is used for any sign of its operand",
        "relaxation/rules.py",
        "used = jnp.where(low >= 0, positive, 0.0) + jnp.where(high <= 0, negative, 0.0)",
        "used = positive + negative",
        ("tests/test_verify.py::test_any_tilts_and_multipliers_bound_a_subdomain",),
    ),
    Fault(
        "A split operand keeps its interval",
        "certificates/kink_splitting.py",
        "jnp.where(signs > 0, jnp.maximum(start_kinks.low, 0.0), start_kinks.low)",
        "start_kinks.low",
        ("tests/test_verify.py::test_it_agrees_with_a_dense_grid",),
    ),
    Fault(
        "One of a kink's two sides is not looked at",
        "certificates/kink_splitting.py",
        "for sign in (1, -1)]",
        "for sign in (1,)]",
        ("tests/test_verify.py",),
    ),
    Fault(
        "An image is broken without its prediction",
        "evaluation/verify.py",
        "logits.argmax() != labels[i]\n",
        "True\n",
        ("tests/test_verify.py::test_a_tie_is_neither_proven_nor_broken",),
    ),
    Fault(
        "An image with an open subdomain is proven",
        "certificates/branch_and_bound.py",
        "min([least, *(bound for bound, *_ in heap[:1])])",
        "least",
        ("tests/test_verify.py",),
    ),
    Fault(
        "One half of a cell is not looked at",
        "certificates/input_splitting.py",
        "return [Cell(low, below, pixel), Cell(above, high, pixel)]",
        "return [Cell(low, below, pixel)]",
        ("tests/test_verify.py::test_splitting_inputs_agrees_with_a_dense_grid",),
    ),
    Fault(
        "A cell is left out if its middle is outside the ball",
        "certificates/input_splitting.py",
        "ball.contains(jnp.clip(x, low, high), x)",
        "ball.contains((low + high) / 2, x)",
        ("tests/test_verify.py::test_splitting_inputs_agrees_with_a_dense_grid",),
    ),
    Fault(
        "Cells outside the ball are looked at",
        "certificates/input_splitting.py",
        "jnp.where(inside, jnp.min(bounds), jnp.inf)",
        "jnp.min(bounds)",
        ("tests/test_verify.py::test_cells_beyond_the_ball_are_not_looked_at",),
    ),
    Fault(
        "A pixel whose line is flat is never cut",
        "certificates/input_splitting.py",
        "FLOOR = 0.1",
        "FLOOR = 0.0",
        ("tests/test_verify.py::test_a_pixel_whose_line_is_flat_is_cut_too",),
    ),
    Fault(
        "A linear function reaches only half as far in a cell",
        "relaxation/margins.py",
        "((high - low) / 2) + lost",
        "((high - low) / 4) + lost",
        ("tests/test_verify.py::test_splitting_inputs_agrees_with_a_dense_grid",),
    ),
    Fault(
        "Branch and bound runs in float32 on images of float64",
        "evaluation/verify.py",
        "images, network = np.asarray(given), _in_float64(logits_fn)",
        "network = _in_float64(logits_fn)",
        ("tests/test_verify.py::test_float64_decides_what_the_rounding_of_float32_leaves_open",),
    ),
    Fault(
        "What float32 breaks is not judged again in float64",
        "evaluation/verify.py",
        "report.still_correct | (predict(network, x_adv, key=key).argmax(1) == labels)",
        "report.still_correct.copy()",
        ("tests/test_verify.py::test_float64_decides_what_the_rounding_of_float32_leaves_open",),
    ),
    Fault(
        "A smooth function's slopes are those of its samples",
        "relaxation/gradients.py",
        "values.min(0) - between, values.max(0) + between",
        "values.min(0), values.max(0)",
        ("tests/test_local_lipschitz.py::test_slopes_enclose_the_derivative",),
    ),
    Fault(
        "A crossed kink has the slope above it",
        "relaxation/gradients.py",
        "Interval(jnp.where(lower >= 0, 1.0, a),",
        "Interval(jnp.where(upper >= 0, 1.0, a),",
        ("tests/test_local_lipschitz.py::test_slopes_enclose_the_derivative",),
    ),
    Fault(
        "A concave function's slopes are the wrong way round",
        "relaxation/gradients.py",
        "ends[:: function.sign]",
        "ends",
        ("tests/test_local_lipschitz.py::test_slopes_enclose_the_derivative",),
    ),
    Fault(
        "Gradients lose their width in affine operations",
        "relaxation/gradients.py",
        "_widened(m - r - 2 * lost, m + r + 2 * lost, ROUNDING)",
        "_widened(m - 2 * lost, m + 2 * lost, ROUNDING)",
        ("tests/test_local_lipschitz.py::test_no_difference_is_outside_that_of_the_gradients",),
    ),
    Fault(
        "The derivative of a product is by the factor itself",
        "relaxation/gradients.py",
        "((x, y), (y, x))]",
        "((x, x), (y, y))]",
        ("tests/test_local_lipschitz.py::test_no_difference_is_outside_that_of_the_gradients",),
    ),
    Fault(
        "Of two ways to a value the gradient is that of one",
        "relaxation/gradients.py",
        "rows[number] = _sum(rows[number], more) if number in rows else more",
        "rows[number] = more",
        ("tests/test_local_lipschitz.py::test_no_difference_is_outside_that_of_the_gradients",),
    ),
    Fault(
        "One of several largest entries is taken for the largest",
        "relaxation/gradients.py",
        "may_be.sum(-1, keepdims=True) == 1",
        "may_be.sum(-1, keepdims=True) >= 1",
        ("tests/test_local_lipschitz.py::test_no_difference_is_outside_that_of_the_gradients",),
    ),
    Fault(
        "What float32 takes off a margin is not counted",
        "relaxation/gradients.py",
        "lost = lost + size @ jnp.ravel(_lost_at(node.rule, bounds[number].interval, *xs))",
        "lost = lost + 0 * size[:, 0]",
        ("tests/test_local_lipschitz.py::test_float32_takes_no_more_off_than_is_stated",),
    ),
    Fault(
        "A local constant is in the norm of the ball",
        "certificates/local_lipschitz.py",
        "jax.vmap(ball.dual_norm)(steepest)",
        "jax.vmap(ball.norm)(steepest)",
        ("tests/test_local_lipschitz.py::test_of_a_linear_network_the_constants_are_exact",),
    ),
    Fault(
        "A local constant is used beyond its ball",
        "certificates/local_lipschitz.py",
        "jnp.minimum(least, ball.eps)",
        "least",
        ("tests/test_local_lipschitz.py::test_of_a_linear_network_the_constants_are_exact",),
    ),
    Fault(
        "An unbounded gradient proves a radius",
        "certificates/local_lipschitz.py",
        "(jnp.where(known, v, jnp.inf) for v in (lipschitz, lost))",
        "(jnp.where(known, v, 0.0) for v in (lipschitz, lost))",
        ("tests/test_local_lipschitz.py::test_a_constant_that_is_not_known_proves_nothing",),
    ),
    Fault(
        "A pair of classes has the constant of another pair",
        "models/lipschitz_layers.py",
        "rows[label] - rows) ** 2",
        "rows[0] - rows) ** 2",
        (
            "tests/test_local_lipschitz.py::test_a_lipschitz_net_has_a_constant_for_each_pair_of_classes",
        ),
    ),
    Fault(
        "Gradient ascent returns its last bound",
        "relaxation/margins.py",
        "return jnp.maximum(best, value), kinks._replace(",
        "return value, kinks._replace(",
        ("tests/test_bound_propagation.py::test_optimised_slopes_are_never_looser",),
    ),
    Fault(
        "A flow map's slope ignores the error of its table",
        "solvers/flow_map.py",
        "max(map(abs, self.extremes(1))) + self.slope_error",
        "max(map(abs, self.extremes(1)))",
        ("tests/test_flow_map.py",),
    ),
    Fault(
        "A norm bound is not rounded up",
        "models/spectral.py",
        "jnp.exp(log_norm))) * (1 + NORM_BOUND_ROUNDING)",
        "jnp.exp(log_norm)))",
        ("tests/test_spectral.py",),
    ),
    Fault(
        "A smallest singular value is not rounded down",
        "models/spectral.py",
        "jnp.maximum(0.0, high * (1 - NORM_BOUND_ROUNDING) - _gram_bound(rest, ITERATIONS))",
        "jnp.maximum(0.0, high - _gram_bound(rest, ITERATIONS))",
        ("tests/test_spectral.py",),
    ),
    Fault(
        "Zero padding is taken for circular",
        "models/spectral.py",
        "return taps, touched + max(0, -first, last - end)",
        "return taps, touched",
        ("tests/test_spectral.py",),
    ),
    Fault(
        "Contraction is claimed without the slope",
        "models/lipschitz_layers.py",
        "return step_norm(self.step, self.slope * low, high)",
        "return step_norm(self.step, low, high)",
        ("tests/test_lipschitz_net.py",),
    ),
    Fault(
        "An expansion counts on a contraction without the slope",
        "models/step_rules.py",
        "step_norm(h, slope * low[0], high[0])",
        "step_norm(h, low[0], high[0])",
        ("tests/test_lipschitz_net.py",),
    ),
    # Solvers
    Fault(
        "SSPRK33 weighs its stages in another order",
        "solvers/ssprk.py",
        "b_sol=np.array([1 / 6, 1 / 6, 2 / 3])",
        "b_sol=np.array([1 / 6, 2 / 3, 1 / 6])",
        ("tests/test_ssprk.py",),
    ),
    Fault(
        "All stages of a step are at its beginning",
        "solvers/layer_steps.py",
        "f(t + c * h, _combine(y, h, a, slopes))",
        "f(t, _combine(y, h, a, slopes))",
        ("tests/test_accepted_steps.py",),
    ),
    Fault(
        "All layers draw the same noise",
        "solvers/layered.py",
        "jax.random.split(key, (depth, 2))",
        "jnp.stack([jax.random.split(key)] * depth)",
        ("tests/test_layered.py",),
    ),
    Fault(
        "Noise grows with the time, not its root",
        "solvers/feynman_kac.py",
        "self.std(y) * jnp.sqrt(dt)",
        "self.std(y) * dt",
        ("tests/test_feynman_kac.py",),
    ),
    Fault(
        "Coarse paths take the mean of the fine increments",
        "solvers/multilevel.py",
        "increments.reshape(coarse, fine // coarse, *x.shape).sum(1)",
        "increments.reshape(coarse, fine // coarse, *x.shape).mean(1)",
        ("tests/test_multilevel.py",),
    ),
    Fault(
        "A flow map is reduced to the period before",
        "solvers/fourier.py",
        "turns = jnp.round(gamma / period)",
        "turns = jnp.floor(gamma / period)",
        ("tests/test_flow_map.py",),
    ),
    Fault(
        "A reversible layer is undone with the wrong sign",
        "solvers/reversible.py",
        "return x - h * fields[0](y, states[0])[0], y",
        "return x + h * fields[0](y, states[0])[0], y",
        ("tests/test_reversible.py",),
    ),
    Fault(
        "The learned step is of order 1",
        "solvers/learned_rk2.py",
        "b21 = 1 / (2 * b10)",
        "b21 = b10 / 2",
        ("tests/test_learned_rk2.py",),
    ),
    Fault(
        "Weights learn from a solve's first step alone",
        "solvers/accepted_steps.py",
        "jax.tree.map(jnp.add, cotangent_args, of_step)",
        "of_step",
        ("tests/test_accepted_steps.py",),
    ),
    Fault(
        "Of a long solve the first states are kept",
        "solvers/accepted_steps.py",
        "a.at[:, :half].set(a[:, ::2])",
        "a.at[:, :half].set(a[:, :half])",
        ("tests/test_accepted_steps.py",),
    ),
    Fault(
        "Every example of a batch gets the first one's gradient",
        "_batch.py",
        "jax.tree.map(lambda a: a[index], of_all)",
        "jax.tree.map(lambda a: a[0], of_all)",
        ("tests/test_accepted_steps.py", "tests/test_reversible.py"),
    ),
    # Models
    Fault(
        "PyTorch's kernels are not turned",
        "models/torch_weights.py",
        "node.kernel, (2, 3, 1, 0))",
        "node.kernel, (3, 2, 1, 0))",
        ("tests/test_torch_weights.py",),
    ),
    Fault(
        "PyTorch's running variance is taken for its mean",
        "models/torch_weights.py",
        '"running_mean", mean)',
        '"running_var", mean)',
        ("tests/test_torch_weights.py",),
    ),
    Fault(
        "Every shortcut of a pre-activation ResNet is activated",
        "models/preact_resnet.py",
        "activated if self.activated else y",
        "activated",
        ("tests/test_torch_weights.py",),
    ),
    Fault(
        "A normalised network is given pixels less their mean alone",
        "models/normalised.py",
        "/ jnp.asarray(self.std, x.dtype)",
        "/ 1",
        ("tests/test_normalised.py",),
    ),
    Fault(
        "The input gradient of a convolution flips one axis",
        "models/convolution.py",
        "[::-1, :, ::-1]",
        "[::-1]",
        ("tests/test_convolution.py",),
    ),
    Fault(
        "Running variances keep their bias",
        "models/norms.py",
        "batch = mean, variance * (n / max(n - 1, 1))",
        "batch = mean, variance",
        ("tests/test_norms.py",),
    ),
    Fault(
        "EnResNet sums its members",
        "models/enresnet.py",
        "return jnp.mean(logits, axis=0), state",
        "return jnp.sum(logits, axis=0), state",
        ("tests/test_enresnet.py", "tests/test_models_contract.py"),
    ),
    Fault(
        "All members of an EnResNet draw the same noise",
        "models/enresnet.py",
        "jax.random.split(key, self.members)",
        "jnp.stack([key] * self.members)",
        ("tests/test_enresnet.py", "tests/test_models_contract.py"),
    ),
    Fault(
        "Diffrax solves the first layer at all times",
        "solvers/layered.py",
        "jnp.floor(t / step_size + 1e-3)",
        "jnp.floor(0 * t)",
        ("tests/test_neural_sde.py",),
    ),
    Fault(
        "All paths of a neural SDE draw the same noise",
        "models/neural_sde.py",
        "jax.vmap(path)(jax.random.split(key, self.paths))",
        "jax.vmap(path)(jnp.stack([key] * self.paths))",
        ("tests/test_neural_sde.py",),
    ),
    Fault(
        "Stages do not halve the resolution",
        "models/preact_resnet.py",
        "stride = 1 if stage == 0 else 2",
        "stride = 1",
        ("tests/test_preact_resnet.py",),
    ),
    Fault(
        "A solve that hit its limit has logits",
        "models/ode_net.py",
        "self.decode(jnp.where(solved, solution.ys[0], jnp.nan), state)",
        "self.decode(solution.ys[0], state)",
        ("tests/test_solve_statistics.py", "tests/test_models_contract.py"),
    ),
    Fault(
        "A field that depends on time is evaluated at time 0",
        "models/conv_ode.py",
        "return residual(y, state, t=t)[0]",
        "return residual(y, state)[0]",
        ("tests/test_models_contract.py",),
    ),
    Fault(
        "The sphere step is twice as long",
        "models/invariant_layers.py",
        "half = self.step_size / 2",
        "half = self.step_size",
        ("tests/test_invariants.py",),
    ),
    # Predictors, fingerprints, meshes
    Fault(
        "Mean logits draw anew for every attack",
        "_ensembles.py",
        "jax.vmap(lambda k: Checked(self.logits_fn)(x, key=k))(self.keys)",
        "jax.vmap(lambda k: Checked(self.logits_fn)(x, key=key))(self.keys)",
        ("tests/test_evaluation.py::test_mean_logits_are_the_mean_over_the_given_draws",),
    ),
    Fault(
        "Noise depends on the place in a batch",
        "_predictor.py",
        "(first + jnp.arange(len(images)))",
        "(jnp.arange(len(images)))",
        ("tests/test_evaluation.py::test_logits_do_not_depend_on_the_batch_size",),
    ),
    Fault(
        "White is 255/256 to a network",
        "_predictor.py",
        "images.astype(jnp.float32) / 255 if",
        "images.astype(jnp.float32) / 256 if",
        ("tests/test_fit.py", "tests/test_data.py"),
    ),
    Fault(
        "A fingerprint omits what functions close over",
        "_fingerprint.py",
        "thing.__kwdefaults__, cells]",
        "thing.__kwdefaults__]",
        ("tests/test_fingerprint.py",),
    ),
    Fault(
        "A batch is rounded down to the devices",
        "_mesh.py",
        "return -(-batch_size // size) * size",
        "return max(batch_size // size, 1) * size",
        ("tests/test_mesh.py",),
    ),
    # Data
    Fault(
        "A training image is among the test images",
        "data/load.py",
        "else slice(DIGITS_TRAIN, None)",
        "else slice(DIGITS_TRAIN - 1, None)",
        ("tests/test_data.py",),
    ),
    Fault(
        "The rest of a holdout holds all images",
        "data/dataset.py",
        "np.sort(order[n:])",
        "np.sort(order)",
        ("tests/test_data.py",),
    ),
    Fault(
        "A result's digest of its data omits the labels",
        "data/dataset.py",
        "fingerprint(self.images, self.labels)",
        "fingerprint(self.images)",
        ("tests/test_data.py",),
    ),
    Fault(
        "One grey file makes a folder of colour images grey",
        "data/folder.py",
        "all(header[0] in _GREY",
        "any(header[0] in _GREY",
        ("tests/test_own_data.py",),
    ),
    Fault(
        "The newest version of a data set is the last by name",
        "data/prepared.py",
        '[int(number) for number in v.name.split(".")]',
        "v.name",
        ("tests/test_prepared_data.py",),
    ),
    Fault(
        "Crops never reach the last row and column",
        "data/augment.py",
        "jax.random.randint(key, (2,), 0, 2 * padding + 1)",
        "jax.random.randint(key, (2,), 0, 2 * padding)",
        ("tests/test_data.py",),
    ),
    Fault(
        "The blur is wider than OpenCV's",
        "data/perturbations.py",
        "sigma = 0.3 * (half - 1) + 0.8",
        "sigma = 0.3 * half + 0.8",
        ("tests/test_perturbations.py",),
    ),
    # Evaluation
    Fault(
        "An image broken in a smaller ball counts as correct in a larger one",
        "evaluation/robust_accuracy.py",
        "still_correct &= logits.argmax(axis=1) == labels",
        "still_correct = logits.argmax(axis=1) == labels",
        ("tests/test_evaluation.py::test_images_already_broken_are_lost_without_another_attack",),
    ),
    Fault(
        "A lucky draw ends an attack",
        "evaluation/robust_accuracy.py",
        "for key in (first_key, second_key)",
        "for key in (first_key, first_key)",
        (
            "tests/test_attacks_compose.py::test_an_attack_ends_with_its_first_success_unless_that_was_a_draw",
        ),
    ),
    Fault(
        "A resumed evaluation forgets the queries",
        "evaluation/robust_accuracy.py",
        'int(saved["stage"]), saved["x_adv"], saved["queries"]',
        'int(saved["stage"]), saved["x_adv"], queries',
        ("tests/test_attacks_compose.py::test_a_killed_evaluation_goes_on_where_it_was",),
    ),
    Fault(
        "A state is taken for that of another key",
        "evaluation/robust_accuracy.py",
        "(attack, logits_fn, judge, images, labels, ball, key, bits)",
        "(attack, logits_fn, judge, images, labels, ball, bits)",
        ("tests/test_attacks_compose.py::test_the_state_of_another_evaluation_is_refused",),
    ),
    Fault(
        "Every image is attacked with the same draws",
        "evaluation/attack_loop.py",
        "start(attack, problem, new, run, jax.random.fold_in(key, index))",
        "start(attack, problem, new, run, key)",
        ("tests/test_evaluation.py", "tests/test_attacks_compose.py"),
    ),
    Fault(
        "In a batch a restart forgets the run before",
        "evaluation/attack_loop.py",
        "new = jax.tree.map(lambda a, b: jnp.where(fresh, a, b), new, adversarial)",
        "new = jax.tree.map(lambda a, b: jnp.where(fresh, a, a), new, adversarial)",
        ("tests/test_attacks_compose.py",),
    ),
    Fault(
        "An attack's queries replace those before",
        "evaluation/attack_loop.py",
        "self.queries[index[slots]] += to_host(adversarial.queries)[slots]",
        "self.queries[index[slots]] = to_host(adversarial.queries)[slots]",
        (
            "tests/test_evaluation.py::test_only_correct_images_are_attacked_and_only_until_an_attack_succeeds",
        ),
    ),
    Fault(
        "A program is taken for another that reads the same",
        "_logits.py",
        "text = (str(closed.jaxpr), shapes, inner, rules)",
        "text = (shapes, inner, rules)",
        ("tests/test_evaluation.py",),
    ),
    Fault(
        "A damaged state is used",
        "evaluation/saved_state.py",
        'if str(arrays.pop("digest", "")) != fingerprint(arrays):',
        'if arrays.pop("digest", "") is None:',
        ("tests/test_attacks_compose.py::test_a_state_that_cannot_be_read_is_refused_by_name",),
    ),
    Fault(
        "Probes lie outside the box",
        "evaluation/probes.py",
        "jnp.clip(x, ball.lower + _H + _MOVE, ball.upper - _H - _MOVE)",
        "x",
        ("tests/test_flags.py",),
    ),
    Fault(
        "The last attack alone decides which images are correct",
        "evaluation/ball_record.py",
        "self.still_correct = self.still_correct & report.still_correct",
        "self.still_correct = report.still_correct",
        ("tests/test_evaluation.py",),
    ),
    Fault(
        "The last certificate alone decides what is proven",
        "evaluation/ball_record.py",
        "self.certified_correct | proven",
        "proven",
        ("tests/test_evaluation.py", "tests/test_certificates.py"),
    ),
    Fault(
        "The confidence interval has half its level",
        "evaluation/intervals.py",
        "tail = (1 - level) / 2",
        "tail = 1 - level",
        ("tests/test_evaluation.py::test_the_confidence_interval_is_scipys_exact_one",),
    ),
    Fault(
        "Transfers stop where their oracle is fooled",
        "evaluation/transfer.py",
        "stop_at_first_success=False,",
        "stop_at_first_success=True,",
        ("tests/test_transfer.py",),
    ),
    Fault(
        "What white-box attacks broke counts for the black box",
        "evaluation/flags.py",
        "(still_correct & ~correct_under).sum()",
        "(~correct_under).sum()",
        ("tests/test_flags.py",),
    ),
    Fault(
        "A hidden gradient must be found by every variant",
        "evaluation/solver_flags.py",
        "if any((cosine < limit.cosine)",
        "if all((cosine < limit.cosine)",
        ("tests/test_flags.py",),
    ),
    # Plots
    Fault(
        "A curve of certified radii counts an image only below its radius",
        "plots/measured.py",
        "(radii >= radius).mean()",
        "(radii > radius).mean()",
        ("tests/test_robustness_curves.py",),
    ),
    Fault(
        "A band claims what an attack has refuted, up to the next eps",
        "plots/interval.py",
        'np.searchsorted(eps, left, side="right") - 1',
        'np.searchsorted(eps, left, side="left") - 1',
        ("tests/test_interval_plot.py",),
    ),
    # Training
    Fault(
        "Every epoch has the same order and noise",
        "training/fit.py",
        "jax.random.fold_in(key, epoch)",
        "key",
        ("tests/test_fit.py::test_every_epoch_visits_every_image_once_in_another_order",),
    ),
    Fault(
        "The last model is returned, not the best",
        "training/run_record.py",
        "if score > best_score:",
        "if score > -np.inf:",
        ("tests/test_fit.py::test_the_model_of_the_best_validation_score_is_returned",),
    ),
    Fault(
        "A resumed run forgets its best score",
        "training/run_record.py",
        'RunRecord(best, history, meta["best_epoch"], meta["best_score"])',
        'RunRecord(best, history, meta["best_epoch"], record.best_score)',
        ("tests/test_fit.py::test_the_best_model_survives_a_restart",),
    ),
    Fault(
        "A run goes on with another augmentation",
        "training/run_record.py",
        '        "augmentation": fingerprint(augment),\n',
        "",
        ("tests/test_fit.py::test_another_runs_checkpoint_is_refused",),
    ),
    Fault(
        "A damaged network is loaded",
        "_network_file.py",
        "digest == _digest([size, blank, data])",
        "True",
        ("tests/test_network_file.py::test_no_flipped_bit_is_used",),
    ),
    Fault(
        "A loaded number widens the dtype of a result",
        "_network_structure.py",
        'return "weak" if array.weak_type and array.shape == () else "jax"',
        'return "jax"',
        (
            "tests/test_network_file.py::test_a_python_number_that_became_an_array_does_not_widen_a_result",
        ),
    ),
    Fault(
        "The average of the weights follows the last ones",
        "training/epoch.py",
        "return kept * a + (1 - kept) * b",
        "return kept * b + (1 - kept) * a",
        ("tests/test_gradients.py",),
    ),
    Fault(
        "Free training carries on its last step alone",
        "training/free.py",
        "ball.shrink(v + ball.eps * ball.steepest(g))",
        "ball.shrink(ball.eps * ball.steepest(g))",
        ("tests/test_gradients.py",),
    ),
    Fault(
        "YOPO's steps forget that the first has no adjoint",
        "training/yopo.py",
        "default_step(ball, (self.m - 1) * self.n)",
        "default_step(ball, self.m * self.n)",
        ("tests/test_gradients.py",),
    ),
    Fault(
        "Eps rises from the second step",
        "training/rising_eps.py",
        "jnp.clip((step - self.wait)",
        "jnp.clip((carry - self.wait)",
        ("tests/test_gradients.py",),
    ),
    Fault(
        "TRADES takes the divergence the other way round",
        "training/trades.py",
        "kl_divergence_with_log_targets(log_q, log_p)",
        "kl_divergence_with_log_targets(log_p, log_q)",
        ("tests/test_constraints.py",),
    ),
    Fault(
        "The margin is given to the label",
        "training/objectives.py",
        "logits - self.margin * jax.nn.one_hot",
        "logits + self.margin * jax.nn.one_hot",
        ("tests/test_fit.py::test_a_margin_in_the_cross_entropy_is_taken_from_the_label",),
    ),
    Fault(
        "Updates are clipped instead of weights",
        "training/constraints.py",
        "jnp.clip(weight + change, -c, c) - weight",
        "jnp.clip(change, -c, c)",
        ("tests/test_constraints.py",),
    ),
    Fault(
        "Mixture weights move by the sum of an epoch's gradients",
        "training/constraints.py",
        "learning_rate * gradient / every",
        "learning_rate * gradient",
        ("tests/test_constraints.py",),
    ),
]


class Unplantable(ValueError):
    """A fault whose text is not, or not once, in its file."""


@contextmanager
def copy():
    """A folder with what tests need of this checkout."""
    with tempfile.TemporaryDirectory(prefix="fault-") as name:
        folder = Path(name)
        for one in COPIED:
            source = ROOT / one
            if source.is_dir():
                caches = shutil.ignore_patterns("__pycache__", ".*")
                shutil.copytree(source, folder / one, ignore=caches)
            elif source.exists():
                shutil.copy(source, folder / one)
        yield folder


def plant(fault: Fault, folder: Path):
    """Make the edit in `folder`; `Unplantable` where it is not clear which."""
    path = folder / "odejax" / fault.file
    text = path.read_text() if path.exists() else ""
    if (n := text.count(fault.old)) != 1:
        raise Unplantable(f"{fault.name!r}: {n} places in {fault.file} read {fault.old!r}, not 1")
    path.write_text(text.replace(fault.old, fault.new))


def run_tests(folder: Path, tests) -> tuple[int, str]:
    """The exit status of pytest in `folder`, without what is slow, and its output."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
    # Processes that a test starts must import this copy too, not an installed one.
    environment = os.environ | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(
            [*command, "-m", "not slow", *tests],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=LIMIT,
        )
    except subprocess.TimeoutExpired:
        return -1, f"no end after {LIMIT} seconds"
    return done.returncode, done.stdout + done.stderr


def hunt(fault: Fault) -> tuple[str | None, float, str]:
    """The test that caught a fault, or None; the seconds; and what went wrong otherwise."""
    started = time.perf_counter()
    with copy() as folder:
        plant(fault, folder)
        status, output = run_tests(folder, fault.tests)
    seconds = time.perf_counter() - started
    if status == 1:
        found = FAILED.search(output)
        return (found[1] if found else "(a test without a name)"), seconds, ""
    tail = "\n".join(output.splitlines()[-20:])
    return None, seconds, "" if status in (0, 5) else f"pytest ended with {status}:\n{tail}"


def check_sound(faults) -> int:
    """0 if all tests that the faults name pass without one."""
    tests = sorted({test for fault in faults for test in fault.tests})
    with copy() as folder:
        status, output = run_tests(folder, tests)
    print("\n".join(output.splitlines()[-20:]))
    return int(status != 0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="of faults; by default all")
    parser.add_argument("--jobs", type=int, default=1, help="faults at a time")
    parser.add_argument("--list", action="store_true", help="the faults, and where they are")
    parser.add_argument("--sound", action="store_true", help="run the tests without a fault")
    parser.add_argument("--table", type=Path, metavar="FILE", help="write what caught what")
    options = parser.parse_args()
    by_name = {fault.name: fault for fault in FAULTS}
    if unknown := set(options.names) - set(by_name):
        parser.error(f"no such fault: {', '.join(sorted(unknown))}; see --list")
    faults = [by_name[name] for name in options.names] or FAULTS
    if options.list:
        for fault in faults:
            print(f"{fault.name}  ({fault.file}: {', '.join(fault.tests)})")
        return 0
    if options.sound:
        return check_sound(faults)
    caught, rows = 0, ["| Fault | File | Caught by |", "| --- | --- | --- |"]
    with ThreadPoolExecutor(options.jobs) as pool:
        for fault, (test, seconds, problem) in zip(faults, pool.map(hunt, faults), strict=True):
            caught += test is not None
            outcome = test or ("an error" if problem else "NOT CAUGHT")
            print(f"{fault.name}: {outcome} ({seconds:.0f} s)", flush=True)
            if problem:
                print(problem, flush=True)
            rows.append(f"| {fault.name} | {fault.file} | {outcome} |")
            if options.table:  # as it grows, in case the run is stopped
                options.table.write_text("\n".join(rows) + "\n")
    print(f"{caught} of {len(faults)} faults were caught")
    return int(caught < len(faults))


if __name__ == "__main__":
    sys.exit(main())
