"""Saved networks: read back bit for bit, without what they were made by, or refused."""

import dataclasses
import hashlib
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import LinearLogits, all_models, alternate, linear_logits, predictor_of

import odejax
from odejax import _network_names as names
from odejax._network_structure import key_numbers
from odejax.models import NmODE, ODESolve

DATA = Path(__file__).parent / "data"
NAME = "ResNet BatchNorm"  # with state
KEY = jax.random.key(0)


def with_values(shapes, seed=0):
    """Shapes as arrays of random numbers, by NumPy: nothing compiles."""
    rng = np.random.default_rng(seed)

    def array(leaf):
        if not isinstance(leaf, jax.ShapeDtypeStruct):
            return leaf
        return jnp.asarray(rng.normal(size=leaf.shape).astype(leaf.dtype))

    return jax.tree.map(array, shapes)


def both(make):
    """The network for inference, whose layers may be others, and for training."""

    def networks(key):
        model, state = make(key)
        return odejax.Predictor(model, state), model, state

    return with_values(eqx.filter_eval_shape(networks, KEY))


def returned(network, folder):
    odejax.save(folder / "net", network)
    return odejax.load(folder / "net")


def assert_same(actual, expected):
    """The same arrays, settings and classes: one program of JAX takes both."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert type(one) is type(other)
        if eqx.is_array(one):
            assert one.dtype == other.dtype  # of keys the kind, too
            one, other = key_numbers(one), key_numbers(other)
            assert one.weak_type == other.weak_type
            one, other = np.asarray(one).tobytes(), np.asarray(other).tobytes()
        assert one == other


# -- what is saved is what is loaded -------------------------------------------------------------


def named(thing):
    """The same in every process."""
    return re.sub(r" at 0x\w+", "", repr(thing))


@pytest.mark.parametrize("name", alternate(all_models))
def test_every_network_is_loaded_as_it_was_saved(name, tmp_path):
    networks = both(all_models[name])
    assert_same(returned(networks, tmp_path), networks)


def test_classifiers_made_of_others_are_loaded_as_they_were_saved(tmp_path):
    (predictor, *_), (noisy, *_) = both(all_models[NAME]), both(all_models["EnResNet"])
    networks = (
        odejax.Smoothed(predictor, sigma=0.25, draws=7),
        odejax.MeanLogits(noisy, jax.random.split(KEY, 3)),
        odejax.MeanLogits(noisy, jax.random.split(jax.random.key(0, impl="rbg"), 2)),
        odejax.EnsembleLogits([predictor, noisy], [0.25, 0.75]),
    )
    assert_same(returned(networks, tmp_path), networks)


def of_equinox(key):
    nn = eqx.nn
    with_state = eqx.nn.make_with_state(nn.BatchNorm)
    plain = (
        nn.MLP(2, 3, 4, 1, activation=jnp.tanh, key=key),
        nn.Sequential([nn.Conv2d(1, 2, 3, key=key), nn.Lambda(jax.nn.gelu), nn.MaxPool2d(2)]),
        nn.GRUCell(2, 3, key=key),
        nn.LayerNorm(3),
        nn.Dropout(0.5),
        nn.AdaptiveAvgPool2d(2),
        nn.RotaryPositionalEmbedding(4),
        nn.MultiheadAttention(2, 4, key=key),
    )
    return *plain, with_state(3, "batch", mode="batch"), with_state(3, "batch", mode="ema")


def test_networks_of_equinox_are_loaded_as_they_were_saved(tmp_path):
    networks = with_values(eqx.filter_eval_shape(of_equinox, KEY))
    assert_same(returned(networks, tmp_path), networks)


def test_solvers_of_diffrax_are_loaded_as_they_were_saved(tmp_path):
    pid = diffrax.PIDController(1e-3, 1e-6, dtmin=0.1)
    solves = (
        ODESolve(solver=diffrax.Kvaerno5(), stepsize_controller=pid),
        ODESolve(adjoint=diffrax.BacksolveAdjoint(solver=diffrax.Tsit5())),
        ODESolve(solver=diffrax.HalfSolver(diffrax.Heun()), adjoint=diffrax.DirectAdjoint()),
        ODESolve(stepsize_controller=diffrax.ClipStepSizeController(pid, step_ts=jnp.ones(2))),
        ODESolve(solver=odejax.solvers.SSPRK33()).on_grid(4),
        NmODE(jnp.asarray(3.0), solver=diffrax.Dopri5(), activations=(jnp.sin, jax.nn.relu)),
    )
    assert_same(returned(solves, tmp_path), solves)


@pytest.mark.parametrize(
    "thing",
    [
        *(float("inf"), float("nan"), -0.0, 1e-300, 2 + 1j, complex("nan"), 2**70, True),
        *("é\n", {"a": [1, (2.0, None)], "b": "c"}, (), [], {}, jnp.bfloat16, np.float32),
        partial(jax.nn.leaky_relu, negative_slope=0.2),
        *(np.float32(0.1), np.bool_(True), np.dtype("int8"), jnp.dtype("bfloat16")),
    ],
    ids=named,
)
def test_settings_keep_their_type_and_value(thing, tmp_path):
    loaded = returned((eqx.nn.Lambda(thing),), tmp_path)[0].fn
    assert type(loaded) is type(thing)
    assert repr(loaded) == repr(thing)


@pytest.mark.parametrize("dtype", [jnp.dtype(name) for name in names.DTYPES], ids=str)
def test_arrays_of_every_dtype_are_loaded_bit_for_bit(dtype, tmp_path):
    numbers = np.random.default_rng(0).bytes(6 * dtype.itemsize)  # NaNs with a payload among them
    numbers = np.frombuffer(numbers, np.uint8) & (1 if dtype.kind == "b" else 255)
    array = numbers.view(dtype).reshape(2, 3)
    with jax.enable_x64(True):
        arrays = (array, array[:0], np.array(array[0, 0]), array.T, jnp.asarray(array[:, 1:]))
        for loaded, expected in zip(returned(arrays, tmp_path), arrays, strict=True):
            assert (type(loaded), loaded.dtype) == (type(expected), expected.dtype)
            assert (loaded.shape, loaded.tobytes()) == (expected.shape, expected.tobytes())


def test_a_python_number_that_became_an_array_does_not_widen_a_result(tmp_path):
    weak, strong = returned((jnp.asarray(2.0), jnp.asarray(np.float32(2))), tmp_path)
    half = jnp.ones(2, jnp.bfloat16)
    assert [(half * weak).dtype, (half * strong).dtype] == [jnp.bfloat16, jnp.float32]


def test_doubles_are_refused_where_jax_would_round_them(tmp_path):
    with jax.enable_x64(True):
        odejax.save(tmp_path / "net", linear_logits())
        odejax.save(tmp_path / "doubles", (jnp.ones(2, jnp.float64),))
        assert odejax.load(tmp_path / "doubles")[0].dtype == jnp.float64
    with pytest.raises(ValueError, match=r"doubles holds float64 arrays: set .* jax_enable_x64"):
        odejax.load(tmp_path / "doubles")


# -- networks with classes of the user's own -----------------------------------------------------


def test_a_network_of_ones_own_is_loaded_with_like(tmp_path):
    network, path = odejax.Smoothed(linear_logits(), 0.1), tmp_path / "net"
    odejax.save(path, network)
    with pytest.raises(
        ValueError, match=r"net holds arrays alone, .* the class helpers.LinearLogits.* like"
    ):
        odejax.load(path)
    shapes = eqx.filter_eval_shape(lambda: odejax.Smoothed(linear_logits(seed=1), 0.2))
    for like in (odejax.Smoothed(linear_logits(seed=1), 0.2), shapes):
        assert_same(odejax.load(path, like=like), network)


@pytest.mark.parametrize(
    ("thing", "named"),
    [
        (lambda x: x, r"function test_network_file.<lambda>"),
        (partial(with_values, seed=1), "function test_network_file.with_values"),
        (partial(jnp.save, "file"), "function numpy.save"),
        (partial(jnp.clip, np.ones(2)), "an array in a static field"),
        (object(), "class builtins.object"),
    ],
    ids=named,
)
def test_what_files_cannot_name_is_named(thing, named, tmp_path):
    odejax.save(tmp_path / "net", eqx.nn.Lambda(thing))
    with pytest.raises(ValueError, match=f"with (the )?{named}.*, which odejax does not know"):
        odejax.load(tmp_path / "net")


def test_like_of_another_structure_is_refused(tmp_path):
    odejax.save(tmp_path / "net", linear_logits())
    with pytest.raises(ValueError, match="net holds 2 arrays, and like has "):
        odejax.load(tmp_path / "net", like=both(all_models["MLP"]))
    with pytest.raises(
        ValueError, match=r"holds float32\[2, 64\] for like.weight, which is float32\[3, 64\]"
    ):
        odejax.load(tmp_path / "net", like=linear_logits(n_classes=3))
    keys = LinearLogits(jax.random.split(KEY, 2), jnp.ones(2))
    with pytest.raises(ValueError, match=r"for like.weight, which is uint32\[2, 2\]"):
        odejax.load(tmp_path / "net", like=keys)


# -- files of earlier versions -------------------------------------------------------------------


LOGITS_V1 = [4.5588274, 4.3435874, 16.77746, -8.2369966]


def test_a_file_of_the_first_version_is_read_for_ever():
    # The file was written when `save` was new. Never write it anew: that would prove nothing.
    predictor = odejax.load(DATA / "network_v1.odejax")
    image = jnp.linspace(0, 1, 64).reshape(8, 8, 1)
    np.testing.assert_allclose(eqx.filter_jit(predictor)(image), LOGITS_V1, rtol=1e-4)


def test_what_files_of_the_first_version_name_stays_for_ever():
    """Classes and their fields are not renamed; a field that comes later has a default."""
    for line in (DATA / "network_names_v1.txt").read_text().splitlines():
        name, *fields = line.split()
        if name not in names.functions():
            known = {f.name: f for f in dataclasses.fields(names.classes()[name])}
            assert set(fields) <= set(known), name
            for new in set(known) - set(fields):
                assert known[new].default is not dataclasses.MISSING, (name, new)


def test_no_two_classes_have_the_same_name():
    for cls in names._subclasses(eqx.Module):
        name = names._own_name(cls)
        if name.startswith("odejax.") and name in names.classes():
            assert names.classes()[name] is cls


def changed(file, change):
    """The file with another header, and the digest that belongs to it."""
    content = file.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header, no_digest = json.loads(content[8:start]), "0" * 64
    header["__metadata__"]["sha256"] = no_digest
    change(header)
    text = json.dumps(header).encode()
    size = len(text).to_bytes(8, "little")
    digest = hashlib.sha256(size + text + content[start:]).hexdigest()
    file.write_bytes(size + text.replace(no_digest.encode(), digest.encode(), 1) + content[start:])


def describing(description):
    def change(header):
        header["__metadata__"]["network"] = json.dumps(description)

    return change


def test_a_field_that_a_file_does_not_have_yet_has_its_default(tmp_path):
    file = tmp_path / "net"
    odejax.save(file, odejax.models.Structured(slope=0.25))
    changed(file, describing({"class": ["odejax.models.Structured", {"slope": 0.25}]}))
    assert odejax.load(file) == odejax.models.Structured(slope=0.25)
    changed(file, describing({"class": ["odejax.models.Conv", {"stride": 1}]}))
    with pytest.raises(ValueError, match=r"net has no field kernel of its odejax.models.Conv"):
        odejax.load(file)


def test_a_later_version_of_the_format_is_named(tmp_path):
    odejax.save(tmp_path / "net", linear_logits())
    changed(tmp_path / "net", lambda header: header["__metadata__"].update(version="2", odejax="9"))
    with pytest.raises(ValueError, match=r"net has version 2 .* by odejax 9; odejax .* version 1"):
        odejax.load(tmp_path / "net")


# -- files that are damaged, malicious, or something else ----------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("network") / "net"
    odejax.save(path, predictor_of(NAME))
    return path


def test_nothing_but_the_file_is_written(saved):
    assert [path.name for path in saved.parent.iterdir()] == ["net"]


def test_no_flipped_bit_is_used(saved, tmp_path):
    content, path = saved.read_bytes(), tmp_path / "net"
    header = int.from_bytes(content[:8], "little")
    assert 2000 < header < len(content) - 2000  # both are hit
    for place in [*range(64), *range(64, 8 * len(content), 401)]:
        damaged = bytearray(content)
        damaged[place // 8] ^= 1 << place % 8
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"net is damaged, or was not written by odejax.save"):
            odejax.load(path)


def zip_of_arrays(path):
    with open(path, "wb") as file:
        np.savez(file, weight=np.ones(3))


OTHERS = {
    "npz": zip_of_arrays,
    "pickle": lambda path: path.write_bytes(pickle.dumps({"weight": np.ones(3)})),
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("weights"),
    "JSON": lambda path: path.write_bytes((2).to_bytes(8, "little") + b"[]"),
    "safetensors": lambda path: path.write_bytes(
        (21).to_bytes(8, "little") + b'{"__metadata__": {}} '
    ),
    "nested": lambda path: path.write_bytes((10**5).to_bytes(8, "little") + b"[" * 10**5),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_another_file_is_refused(kind, tmp_path):
    OTHERS[kind](tmp_path / "net")
    with pytest.raises(ValueError, match=r"net is damaged, or was not written by odejax.save"):
        odejax.load(tmp_path / "net")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.999])
def test_a_truncated_file_is_refused(share, saved, tmp_path):
    content = saved.read_bytes()
    (tmp_path / "net").write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match="net is damaged"):
        odejax.load(tmp_path / "net")


def test_paths_that_are_none_are_refused(tmp_path):
    with pytest.raises(ValueError, match="missing cannot be read: No such file"):
        odejax.load(tmp_path / "missing")
    with pytest.raises(ValueError, match="path must be a local path; got gs://net"):
        odejax.save("gs://net", predictor_of("MLP"))
    (tmp_path / "7").mkdir()
    for folder, reason in ((DATA, "holds no checkpoint"), (tmp_path, "cannot be read")):
        before = sorted(folder.rglob("*"))
        with pytest.raises(ValueError, match=f"{folder.name} {reason}"):
            odejax.load(folder)
        assert sorted(folder.rglob("*")) == before
    with pytest.raises(ValueError, match="path must be a path; got 3"):
        odejax.load(3)


ENTRIES = [
    *({"shape": shape} for shape in ([10**12], [2**63], [0, 10**30], [-3], [1] * 99, ["3"], None)),
    *({"data_offsets": place} for place in ([0, 10**400], [10**400, 12], [-4, 8], [4, 16], 0)),
    *({"dtype": dtype} for dtype in ("O", "F64", None)),
]


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: str(entry)[:40])
def test_an_array_that_the_bytes_do_not_suffice_for_is_refused(entry, tmp_path):
    odejax.save(tmp_path / "net", (np.ones(3, np.float32),))
    changed(tmp_path / "net", lambda header: header["[0]"].update(entry))
    with pytest.raises(ValueError, match="net describes no network"):
        odejax.load(tmp_path / "net")


LAMBDA = "equinox.nn.Lambda"


@pytest.mark.parametrize(
    ("description", "reason"),
    [
        ({"function": "os.system"}, "names the function os.system, which odejax .* not know"),
        ({"function": "evil.run"}, "names the function evil.run"),
        ({"function": "jax.numpy.save"}, "names the function jax.numpy.save"),
        ({"function": "odejax.models.nmode.np.save"}, "names the function odejax.models.nmode"),
        ({"partial": [{"function": "evil.run"}, [], {"dict": []}]}, "names the function evil.run"),
        ({"partial": [{"class": [LAMBDA, {}]}, [], {"dict": []}]}, "has an entry .*'partial'"),
        ({"class": ["evil.Run", {}]}, "names the class evil.Run"),
        ({"class": ["subprocess.Popen", {"args": "true"}]}, "names the class subprocess.Popen"),
        ({"class": ["equinox.nn.Shared.where", {}]}, "names the class"),
        ({"class": [LAMBDA, {"fn": None, "__class__": 1}]}, f"names the field {LAMBDA}.__class__"),
        ({"class": [LAMBDA, {"fn": None, "other": 1}]}, f"names the field {LAMBDA}.other"),
        ({"class": [["a"], {}]}, "has an entry"),
        ({"dtype": "O"}, "names the dtype O"),
        ({"scalar": ["object", 1]}, "names the dtype object"),
        ({"scalar": ["int8", "many"]}, "describes no network"),
        ({"scalar": ["int8", 10**40]}, "describes no network"),
        ({"complex": [10**400, 0]}, "describes no network"),
        ({"array": [7, "jax"]}, "has an entry"),
        ({"array": [-1, "jax"]}, "has an entry"),
        ({"array": [0, "weak"]}, "describes no network"),
        ({"array": [0, "pickle"]}, "names the kind of key pickle"),
        ({"array": [0, "rbg"]}, "describes no network"),
        ({"dict": [[[], 1]]}, "describes no network"),
        ({"dict": [1]}, "describes no network"),
        ({"state": [1]}, "describes no network"),
        ({"float": "many"}, "describes no network"),
        ({"tuple": 1, "dict": []}, "has an entry"),
        ({"import": "evil"}, "has an entry {'import': 'evil'}"),
        ({}, "has an entry"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_malicious_description_is_refused_and_executes_nothing(
    description, reason, tmp_path, monkeypatch
):
    (tmp_path / "evil.py").write_text("raise AssertionError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    odejax.save(tmp_path / "net", (np.ones(3, np.float32),))
    before = sorted(tmp_path.iterdir())
    changed(tmp_path / "net", describing({"class": [LAMBDA, {"fn": description}]}))
    with pytest.raises(ValueError, match=f"net {reason}") as caught:
        odejax.load(tmp_path / "net")
    assert "\n" not in str(caught.value)
    assert "evil" not in sys.modules
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("depth", [990, 10**5])
def test_lists_that_are_nested_too_deep_are_refused(depth, tmp_path):
    odejax.save(tmp_path / "net", (np.ones(3, np.float32),))
    nested = "[" * depth + "]" * depth
    changed(tmp_path / "net", lambda header: header["__metadata__"].update(network=nested))
    with pytest.raises(ValueError, match="net describes no network"):
        odejax.load(tmp_path / "net")


def test_a_network_is_loaded_without_a_call_of_what_it_is_made_of(saved, monkeypatch):
    def called(*_, **__):
        raise AssertionError("called")

    for cls in names.classes().values():
        monkeypatch.setattr(cls, "__init__", called)
    assert eqx.tree_equal(odejax.load(saved), predictor_of(NAME))


# -- writing -------------------------------------------------------------------------------------


def test_an_interrupted_save_keeps_the_file_that_was_there(saved, tmp_path, monkeypatch):
    file = Path(shutil.copy(saved, tmp_path))

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        odejax.save(file, linear_logits())
    assert file.read_bytes() == saved.read_bytes()
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (lambda x: x, "network must be a module, or a tuple of them; got"),
        (jnp.ones(2), "network must be a module, or a tuple of them; got"),
        (odejax.training.Fit(*5 * [None]), "network must be a module, .* got a Fit"),
        (eqx.filter_eval_shape(linear_logits), r"must hold arrays with values; .* at \.weight"),
        ((np.array(["a"]),), r"<U1 arrays cannot be saved; network has one at \[0\]"),
    ],
)
def test_what_is_no_network_is_refused(network, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        odejax.save(tmp_path / "folder" / "net", network)
    assert not list(tmp_path.iterdir())


def test_save_is_refused_inside_jit(tmp_path):
    with pytest.raises(ValueError, match="must hold arrays with values"):
        jax.jit(lambda x: odejax.save(tmp_path / "net", (x,)))(1.0)


def test_a_fresh_process_knows_the_classes_that_a_file_names():
    """Packages of odejax are imported when they are used, and `load` is such a use."""
    file = DATA / "network_v1.odejax"
    code = f"import odejax; print(type(odejax.load({str(file)!r})).__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "Predictor"
