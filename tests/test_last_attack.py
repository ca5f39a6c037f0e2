"""AutoAttack on what other attacks and certificates leave in doubt."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import odejax
from experiments import _last_attack
from odejax.attacks import FGSM, PGD, AutoAttack, Square
from odejax.certificates import AbstractCertificate
from odejax.data import ArrayDataset
from odejax.evaluation import bracket

EPS = (0.05, 0.1, 0.2)
GREYS = np.array([130, 145, 160, 200, 100])  # at 2.5, 17.5, 32.5, 72.5 from 127.5; the last wrong
DISTANCES = (GREYS - 127.5) / 255
DATA = ArrayDataset(
    np.broadcast_to(GREYS[:, None, None, None], (5, 4, 4, 1)).astype(np.uint8),
    np.zeros(5, np.int32),
    n_classes=2,
)


class Mean(eqx.Module):
    """Logits +-(mean - 1/2), whose distance from the boundary in L-infinity is |mean - 1/2|."""

    def __call__(self, x, state, *, key=None):
        mean = jnp.mean(x) - 0.5
        return jnp.stack([mean, -mean]), state


class NearlyExact(AbstractCertificate):
    """Nine tenths of that distance."""

    def radius(self, predictor, x, logits, ball):
        return 0.9 * jnp.max(logits)


def measured(certificates=()):
    """The network, and what a weak attack leaves of it."""
    predictor, key = odejax.Predictor(Mean(), eqx.nn.State(Mean())), jax.random.key(0)
    brackets = [
        bracket(
            predictor,
            *DATA,
            odejax.LinfBall(eps),
            attacks={"weak": PGD(1, 0.01, random_start=False)},
            certificates=certificates,
            key=key,
            flag_images=0,
        )
        for eps in EPS
    ]
    return predictor, brackets, key


def summaries(monkeypatch, attack, certificates=()):
    """After `attack` on what a weak attack leaves, and who was attacked, from the largest ball."""
    predictor, brackets, key = measured(certificates)
    attacked = []

    def recorded(*args, already_broken, **kwargs):
        attacked.append(np.flatnonzero(~already_broken).tolist())
        return robust_accuracy(*args, already_broken=already_broken, **kwargs)

    robust_accuracy = _last_attack.robust_accuracy
    monkeypatch.setattr(_last_attack, "robust_accuracy", recorded)
    after = _last_attack.after_autoattack(
        attack, brackets, predictor, DATA, odejax.LinfBall, key=key
    )
    return brackets, after, attacked


EXACT = AutoAttack({"FGSM": FGSM()})  # of a linear network


def test_what_withstands_in_a_large_ball_is_not_attacked_in_smaller_ones(monkeypatch):
    brackets, after, attacked = summaries(monkeypatch, EXACT)
    # The weak attack gets to image 0, at 0.0098; image 3 withstands at 0.2, image 2 at 0.1.
    assert [b.attacked for b in brackets] == [0.6] * 3
    assert attacked == [[1, 2, 3], [1, 2], [1]]
    assert [s["in_doubt"] for s in after] == [1, 2, 3]
    for eps, summary in zip(EPS, after, strict=True):
        assert summary["attacked"] == np.mean(eps < DISTANCES)
        assert summary["attacked_interval"][0] < summary["attacked"]
        assert summary["per_attack"] == {"weak": 0.6}
        assert summary["seconds"]["AutoAttack"] > 0


def test_what_is_certified_is_not_attacked(monkeypatch):
    _, after, attacked = summaries(monkeypatch, EXACT, [NearlyExact()])
    assert attacked == [[1, 2], [1], []]
    assert [s["certified"] for s in after] == [0.6, 0.4, 0.2]
    assert [s["attacked"] for s in after] == [0.6, 0.4, 0.2]


def test_a_black_box_that_breaks_more_than_the_gradients_is_flagged(monkeypatch):
    blind = AutoAttack({"PGD": PGD(1, 1e-4, random_start=False), "Square": Square(50)})
    _, after, _ = summaries(monkeypatch, blind)
    flags = [[flag for flag in s["flags"] if flag != "steps too short"] for s in after]
    assert flags == [[], [], ["black box beats white box"]]


def test_what_is_broken_in_a_ball_is_so_in_larger_ones(monkeypatch):
    predictor, brackets, _ = measured()
    lost = brackets[0].standing & [True, False, True, True, True]
    brackets[0] = brackets[0]._replace(standing=lost)
    harmless = AutoAttack({"FGSM": PGD(1, 1e-6, random_start=False)})
    after = _last_attack.after_autoattack(
        harmless, brackets, predictor, DATA, odejax.LinfBall, key=jax.random.key(0)
    )
    assert [b.attacked for b in brackets] == [0.6] * 3
    assert [s["attacked"] for s in after] == [0.4] * 3
