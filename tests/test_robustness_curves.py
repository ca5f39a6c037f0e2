"""A figure of brackets shows what they hold, in every form that holds them, and nothing cut off."""

import dataclasses

import matplotlib.pyplot as plt
import numpy as np
import pytest

from odejax import L2Ball, LinfBall, attacks, certificates, evaluation, plots

RADII = np.array([0.0, 0.05, 0.15, 0.15, 0.3])
BAND, ATTACKED = "true robust accuracy", "under all attacks, run at the dots"
CERTIFIED = "certified"


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


def summary(eps, attacked, certified, *, ball="linf", fgsm=None, proofs=("LipschitzMargin",)):
    per_attack = {"PGD": attacked} | ({} if fgsm is None else {"FGSM": fgsm})
    return {
        "ball": ball,
        "eps": eps,
        "clean": 0.8,
        "attacked": attacked,
        "certified": certified,
        "per_attack": per_attack,
        "per_certificate": dict.fromkeys(proofs, certified),
    }


MEASURED = [summary(0.1, 0.7, 0.6, fgsm=0.75), summary(0.2, 0.4, 0.2, fgsm=0.6)]


def line(axis, label):
    """Where a labelled curve is drawn: x and y."""
    (curve,) = [one for one in axis.lines if one.get_label() == label]
    return np.asarray(curve.get_xdata()), np.asarray(curve.get_ydata())


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def draw(models, title="a title", **settings):
    return plots.robustness_curves(models, title=title, **settings)


def test_summaries_are_drawn_by_eps_in_percent():
    figure = draw({"a": MEASURED[::-1]})  # in any order
    (axis,) = figure.axes
    np.testing.assert_allclose(line(axis, ATTACKED), [[0, 0.1, 0.2], [80, 70, 40]])
    np.testing.assert_allclose(line(axis, CERTIFIED), [[0, 0.1, 0.2], [80, 60, 20]])
    # Nothing between two radii looks like a measurement.
    joined = [one.get_label() for one in axis.lines if one.get_linestyle() != "None"]
    assert joined == [CERTIFIED]
    np.testing.assert_allclose(line(axis, "under FGSM alone"), [[0, 0.1, 0.2], [80, 75, 60]])
    assert legend(figure) == [BAND, ATTACKED, CERTIFIED, "under FGSM alone"]
    assert axis.get_title() == "a"
    assert "infty" in axis.get_xlabel()
    assert "[0, 1]" in axis.get_xlabel()


def test_certified_radii_are_a_step_curve():
    stored = {"brackets": MEASURED, "radii": RADII.tolist(), "certificates": 1}
    (axis,) = draw({"a": {"balls": {"linf": stored}}}).axes
    at, certified = line(axis, CERTIFIED)
    np.testing.assert_allclose(at, [0, 0.05, 0.1, 0.15, 0.2])
    np.testing.assert_allclose(certified, [80, 80, 60, 60, 20])


def test_a_logarithmic_axis_begins_at_0_and_has_every_eps_as_a_tick():
    small = [summary(0.005, 0.78, 0.7), *MEASURED]
    axes = draw({"a": small, "b": small}, log=True).axes
    for axis in axes:
        assert axis.get_xscale() == "symlog"
        np.testing.assert_allclose(axis.get_xticks(), [0, 0.005, 0.1, 0.2])
        assert axis.get_xlim()[0] == 0
        at, _ = axis.transData.transform([(eps, 0) for eps in (0, 0.005, 0.1, 0.2)]).T
        assert np.diff(at)[0] > 0.1 * (at[-1] - at[0])  # what is small is seen
        assert [axis.xaxis.get_major_formatter()(eps) for eps in (0.005, 0.2)] == ["0.005", "0.2"]


def test_without_certificates_no_proof_is_drawn():
    unproven = [summary(0.1, 0.7, 0.0, proofs=())]
    stored = {"brackets": unproven, "radii": np.zeros(5), "certificates": 0}
    for form in (unproven, {"balls": {"linf": stored}}):
        assert CERTIFIED not in legend(draw({"a": form}))


@pytest.fixture(scope="module")
def brackets():
    """Of a linear network of constant 1: certified radii are margin / sqrt(2)."""
    images = np.random.default_rng(0).uniform(0.2, 0.8, (6, 1, 4, 1)).astype(np.float32)
    labels = images.reshape(6, 4).argmax(axis=1)

    def identity(x, key=None):
        return x.ravel()

    measured = evaluation.bracket(
        identity,
        images,
        labels,
        [L2Ball(0.05), L2Ball(0.3)],
        attacks=attacks.PGD(3),
        certificates=(),
        key=0,
        flag_images=0,
        progress=False,
    )
    logits = np.sort(images.reshape(6, 4), axis=1)
    radius = (logits[:, -1] - logits[:, -2]) / np.sqrt(2)
    certified = [
        dataclasses.replace(
            one,
            radius=radius,
            certified=float((radius >= one.eps).mean()),
            per_certificate={certificates.LipschitzMargin.__name__: 0.0},
        )
        for one in measured
    ]
    return measured, certified, radius


def test_a_bracket_several_and_their_summaries_show_the_same(brackets):
    measured, _, _ = brackets
    expected = line(draw({"a": measured.summaries()}).axes[0], ATTACKED)
    for form in (measured, list(measured), [measured[:1], measured[1:]], iter(measured)):
        np.testing.assert_array_equal(line(draw({"a": form}).axes[0], ATTACKED), expected)
    np.testing.assert_array_equal(line(draw({"a": measured[1]}).axes[0], ATTACKED)[0], [0, 0.3])


def test_the_radii_of_brackets_are_a_step_curve(brackets):
    _, certified, radius = brackets
    at, share = line(draw({"a": certified}).axes[0], CERTIFIED)
    np.testing.assert_allclose(at, np.unique([0, 0.05, 0.3, *radius[radius < 0.3]]))
    np.testing.assert_allclose(share[1:], [100 * (radius >= one).mean() for one in at[1:]])


def test_published_figures_are_crosses_inside_the_panel():
    published = {"a": [(LinfBall(0.4), 0.9), (LinfBall(0.1), 0.95)]}
    figure = draw({"a": MEASURED, "b": MEASURED}, published=published)
    left, right = figure.axes
    np.testing.assert_allclose(line(left, "published"), [[0.1, 0.4], [95, 90]], rtol=1e-6)
    assert left.get_xlim()[1] > 0.4
    assert all(one.get_label() != "published" for one in right.lines)
    assert legend(figure)[-1] == "published"


def test_norms_are_rows_and_what_was_not_measured_is_empty():
    both = [*MEASURED, summary(1.0, 0.5, 0.1, ball="l2")]
    figure = draw({"a": both, "b": MEASURED})
    assert [axis.axison for axis in figure.axes] == [True, True, True, False]
    assert [axis.get_title() for axis in figure.axes[:2]] == ["a", "b"]
    assert figure.axes[0].get_xlim()[1] == pytest.approx(0.206)
    assert figure.axes[2].get_xlim()[1] == pytest.approx(1.03)


def test_any_attack_or_none_is_drawn_alone():
    assert "under PGD alone" in legend(draw({"a": MEASURED}, alone="PGD"))
    assert legend(draw({"a": MEASURED}, alone=None)) == [BAND, ATTACKED, CERTIFIED]
    # The only attack is the worst case already.
    assert "under PGD alone" not in legend(draw({"a": [summary(0.1, 0.7, 0.6)]}, alone="PGD"))


@pytest.mark.parametrize("count", [1, 2, 7])
def test_nothing_is_cut_off_and_no_legend_covers_data(count):
    title = "A title that says in one long sentence what the reader is meant to see in the figure"
    models = {f"network {i}": MEASURED for i in range(count)}
    figure = draw(models, title, published={"network 0": [(LinfBall(0.1), 0.9)]})
    figure.canvas.draw()
    inside = figure.bbox
    panels = [axis.get_tightbbox() for axis in figure.axes]
    above = figure._suptitle.get_window_extent()  # pyright: ignore[reportAttributeAccessIssue]
    below = figure.legends[0].get_window_extent()
    for box in (above, below, *panels):
        assert inside.x0 <= box.x0 < box.x1 <= inside.x1
        assert inside.y0 <= box.y0 < box.y1 <= inside.y1
    for box in panels:
        assert below.y1 - 1 <= box.y0 < box.y1 <= above.y0 + 1


@pytest.mark.parametrize(
    ("models", "settings", "message"),
    [
        ({}, {}, "models must hold at least one"),
        ({"a": []}, {}, r"models\['a'\] must hold at least one Bracket"),
        (
            {"a": {"balls": {"linf": {"brackets": [], "certificates": 0}}}},
            {},
            "at least one Bracket",
        ),
        ({"a": 0.5}, {}, "must be a Bracket, several, or their summaries; got float"),
        ({"a": ["linf"]}, {}, "got str"),
        ({"a": [MEASURED[0], MEASURED[0]]}, {}, "one Bracket for each eps"),
        ({"a": MEASURED}, {"published": {"b": []}}, "published must name one of the models"),
        ({"a": MEASURED}, {"published": {"a": [(LinfBall(0.1), 93.6)]}}, "in .0, 1.; got 93.6"),
        (
            {"a": MEASURED},
            {"published": {"a": [(L2Ball(1.0), 0.9)]}},
            "norm measured",
        ),
        ({"a": MEASURED}, {"published": {"a": [(0.1, 0.9)]}}, "must be a ball"),
    ],
)
def test_what_cannot_be_drawn_is_refused(models, settings, message):
    with pytest.raises(ValueError, match=message):
        draw(models, **settings)
    assert not plt.get_fignums()


def test_log_axes_have_plain_numbers():
    figure, axis = plt.subplots()
    axis.loglog([1, 4], [1e-3, 10])
    plots.plain_ticks(axis)
    figure.canvas.draw()
    for one in (axis.xaxis, axis.yaxis):
        texts = [label.get_text() for label in one.get_ticklabels(which="both")]
        assert any(texts)
        assert not any("10^" in text for text in texts)


def test_a_name_has_its_color_in_every_figure_and_two_names_never_one():
    assert plots.colors(["PGD-40"])["PGD-40"] == plots.colors(["FGSM", "PGD-10"])["PGD-10"]
    for names in (["ResNet", "PGD-7", "PGD-40"], [f"network {i}" for i in range(8)]):
        assert len(set(plots.colors(names).values())) == len(names)
    with pytest.raises(ValueError, match="at most 8; got 9"):
        plots.colors(str(i) for i in range(9))
