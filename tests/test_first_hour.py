"""The first hour of a new user: what is asked for is done or refused, what is shown is clear."""

import os
import re
import signal
import sys
import threading
import time
import warnings

import numpy as np
import pytest

import fastgrad
from fastgrad import SGD, Adam, MultiLayerNet, TwoLayerNet, tables
from fastgrad.book import DeepConvNet, SimpleConvNet
from fastgrad.cli import commands, parser, textbook
from fastgrad.runtime import interrupt

SMALL = {"filter_num": 3, "filter_size": 3, "pad": 0, "stride": 1}
RNG = np.random.default_rng(0)
X, T = RNG.random((8, 6)), np.array([0, 1, 2, 0, 1, 2, 0, 1])
IMAGES = RNG.random((8, 1, 10, 10))


def convnet():
    np.random.seed(0)
    return SimpleConvNet((1, 10, 10), SMALL, 5, 3, 0.5)


def two_layers():
    return TwoLayerNet(6, 4, 3, 0.5, rng=0)


def many_layers():
    return MultiLayerNet(6, [4], 3, weight_decay_lambda=0.1, rng=0)


def deep_convnet():
    return DeepConvNet((1, 10, 10), *[SMALL | {"pad": 1}] * 6, 6, 4)


def images_or_samples(net):
    return IMAGES if isinstance(net, SimpleConvNet) else X


def press_ctrl_c():
    signal.raise_signal(signal.SIGINT)


@pytest.fixture
def python_handles_ctrl_c():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def kept(function):
    """Call a function as the command line does."""
    with interrupt.kept():
        function()


# Ctrl-C ------------------------------------------------------------------------------------------


@pytest.mark.skipif(os.name != "posix", reason="sends signals")
@pytest.mark.usefixtures("python_handles_ctrl_c")
class TestInterrupts:
    def test_one_during_a_hold_waits_for_its_end(self):
        reached = []

        def compile_something():
            interrupt.hold()
            press_ctrl_c()
            reached.append("the end of the hold")
            interrupt.release()
            reached.append("what follows")

        with pytest.raises(KeyboardInterrupt):
            kept(compile_something)
        assert reached == ["the end of the hold"]
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

    def test_a_second_one_does_not_wait(self):
        def compile_something():
            interrupt.hold()
            press_ctrl_c()
            press_ctrl_c()
            pytest.fail("the second one must raise")

        with pytest.raises(KeyboardInterrupt):
            kept(compile_something)

    @pytest.mark.parametrize("turned_into", [None, ValueError])
    def test_what_is_swallowed_is_raised_again(self, turned_into):
        def swallow():
            try:
                press_ctrl_c()
            except KeyboardInterrupt:
                if turned_into:
                    raise turned_into from None

        with pytest.raises(KeyboardInterrupt):
            kept(swallow)

    def test_a_script_may_deal_with_it(self):
        with interrupt.kept(may_be_caught=True):
            with pytest.raises(KeyboardInterrupt):
                press_ctrl_c()
            interrupt.hold()
            interrupt.release()  # does not raise it once more

    def test_other_threads_are_left_alone(self):
        thread = threading.Thread(target=lambda: (interrupt.hold(), interrupt.release()))
        with interrupt.kept():
            thread.start()
            thread.join()

    @pytest.mark.parametrize("make", [two_layers, convnet])
    def test_fit_ends_after_the_iteration_in_hand(self, make):
        net = make()
        x = images_or_samples(net)

        def callback(iteration, loss):
            if iteration == 2:
                press_ctrl_c()

        with interrupt.kept(may_be_caught=True):
            history = net.fit(x, T, iterations=50, batch_size=4, callback=callback)
        assert history.interrupted
        assert len(history.loss) == 3

    def test_compiling_ahead_is_ended(self, monkeypatch):
        """The `fit` that compiles takes the interrupt for a wish to end early."""
        from fastgrad.cli import warmup

        ended = fastgrad.History(np.ones(1), interrupted=True)
        monkeypatch.setattr(TwoLayerNet, "fit", lambda net, x, t, **options: ended)
        with pytest.raises(KeyboardInterrupt):
            warmup.call("fit", "float64")


# what is asked for is done, or refused ----------------------------------------------------------


class Doubled(TwoLayerNet):
    """A loss of its own, and the gradient that belongs to it."""

    def loss(self, x, t):
        return 2 * super().loss(x, t)

    def gradient(self, x, t):
        return {name: 2 * array for name, array in super().gradient(x, t).items()}


class Inconsistent(TwoLayerNet):
    def loss(self, x, t):
        return 2 * super().loss(x, t)


class TestFit:
    def test_a_subclass_is_trained_by_its_own_methods(self):
        own, plain = Doubled(6, 4, 3, rng=0), TwoLayerNet(6, 4, 3, rng=0)
        first = own.fit(X, T, iterations=5, batch_size=4, learning_rate=0.1, rng=1)
        second = plain.fit(X, T, iterations=5, batch_size=4, learning_rate=0.2, rng=1)
        np.testing.assert_allclose(first.loss, 2 * second.loss, rtol=1e-12)
        for name, array in plain.params.items():
            np.testing.assert_allclose(own.params[name], array, rtol=1e-12)

    def test_a_loss_without_its_gradient_is_refused(self):
        net = Inconsistent(6, 4, 3, rng=0)
        before = net.params["W1"].copy()
        with pytest.raises(TypeError, match="`gradient` must be Inconsistent's own"):
            net.fit(X, T, iterations=5)
        np.testing.assert_array_equal(net.params["W1"], before)
        history = net.fit(X, T, iterations=2, batch_size=4, method="numerical_gradient", rng=0)
        assert len(history.loss) == 2

    @pytest.mark.parametrize("make", [two_layers, convnet])
    def test_two_learning_rates_are_refused(self, make):
        net = make()
        x = images_or_samples(net)
        with pytest.raises(TypeError, match="`learning_rate` must be left out beside"):
            net.fit(x, T, iterations=1, optimizer=SGD(0.2), learning_rate=0.1)
        with pytest.raises(ValueError, match="`learning_rate` must be a finite number"):
            net.fit(x, T, iterations=1, learning_rate=-1)

    def test_a_convnet_is_trained_like_the_others(self, capsys):
        net, other = convnet(), convnet()
        test = IMAGES[:3], T[:3]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            history = net.fit(IMAGES, T, iterations=4, batch_size=4, rng=0, learning_rate=0.01,
                              validation=test, progress=True)  # fmt: skip
        assert "loss=" in capsys.readouterr().err
        assert history.epochs.tolist() == [0, 1]
        optimizer, draw = Adam(0.01), np.random.default_rng(0)
        for loss, batch in zip(history.loss, draw.integers(8, size=(4, 4)), strict=True):
            assert other.loss(IMAGES[batch], T[batch]) == pytest.approx(loss, rel=1e-12)
            optimizer.update(other.params, other.gradient(IMAGES[batch], T[batch]))
        assert net.accuracy(IMAGES, T) == other.accuracy(IMAGES, T)

    def test_a_convnet_trains_without_the_time_of_compiling(self):
        from fastgrad.runtime import compile_time

        def callback(iteration, loss):
            compile_time._begin(True)
            time.sleep(0.02)
            compile_time._end()

        begin = time.perf_counter()
        history = convnet().fit(IMAGES, T, iterations=2, batch_size=4, callback=callback)
        assert history.seconds < time.perf_counter() - begin - 0.035


class TestFiles:
    @pytest.mark.parametrize("make", [convnet, deep_convnet])
    def test_convnets_are_saved_as_npz(self, make, tmp_path):
        net = make()
        path = net.save(tmp_path / "net")
        assert path.suffix == ".npz"
        state = np.random.get_state()[1].copy()
        loaded = type(net).load(path)
        np.testing.assert_array_equal(np.random.get_state()[1], state)
        np.testing.assert_array_equal(loaded.predict(IMAGES), net.predict(IMAGES))
        with pytest.raises(ValueError, match="must hold a"):
            (DeepConvNet if isinstance(net, SimpleConvNet) else SimpleConvNet).load(path)

    def test_parameters_of_a_default_convnet(self, tmp_path):
        net = SimpleConvNet()
        np.savez(tmp_path / "net.npz", **net.params)
        loaded = SimpleConvNet.load(tmp_path / "net.npz")
        np.testing.assert_array_equal(loaded.params["W2"], net.params["W2"])

    def test_what_is_no_convnet(self, tmp_path):
        np.savez(tmp_path / "net.npz", W1=np.zeros(3))
        with pytest.raises(ValueError, match="does not describe a network"):
            SimpleConvNet.load(tmp_path / "net.npz")


@pytest.mark.parametrize("make", [two_layers, many_layers, convnet])
@pytest.mark.parametrize(
    "options",
    [{"h": "auto"}, {"order": 4}, {"sample": 2, "rng": 0}, {"directions": 3, "rng": 0},
     {"progress": False}],
    ids=str,
)  # fmt: skip
def test_check_gradient_of_a_network_takes_all_options(make, options):
    net = make()
    x = images_or_samples(net)
    before = {name: array.copy() for name, array in net.params.items()}
    check = net.check_gradient(x, T, **options)
    assert {name.partition(" ")[0] for name in check.arrays} == set(net.params)
    assert not any(array.wrong for array in check.arrays.values())
    for name, array in before.items():
        np.testing.assert_array_equal(net.params[name], array)


@pytest.mark.parametrize("seed", [
    np.random.SeedSequence(5), np.random.RandomState(5), np.random.default_rng(5), 5, np.int64(5),
    np.random.PCG64(5),
], ids=lambda seed: type(seed).__name__)  # fmt: skip
def test_every_kind_of_seed(seed):
    state = np.random.get_state()[1].copy()
    net = TwoLayerNet(6, 4, 3, rng=seed)
    assert len(net.fit(X, T, iterations=2, batch_size=3, rng=seed).loss) == 2
    check = fastgrad.check_gradient(lambda x: float(np.sum(x**2)), 2 * X, X, sample=3, rng=seed)
    assert check.ok
    np.testing.assert_array_equal(np.random.get_state()[1], state)


def test_a_random_state_gives_the_numbers_of_its_seed():
    np.random.seed(5)
    expected = TwoLayerNet(6, 4, 3).params["W1"]
    net = TwoLayerNet(6, 4, 3, rng=np.random.RandomState(5))
    np.testing.assert_array_equal(net.params["W1"], expected)


def test_labels_as_loadtxt_reads_them():
    net = TwoLayerNet(6, 4, 3, rng=0)
    assert net.loss(X, T.astype(float)) == net.loss(X, T)
    assert net.loss(X, T.astype(np.float32)[:, None]) == net.loss(X, T)
    with pytest.raises(TypeError, match="integer labels"):
        net.loss(X, T + 0.5)
    with pytest.raises(ValueError, match="labels from 0 to 2"):
        net.loss(X, T + 5.0)


# what is shown -----------------------------------------------------------------------------------


class TestTables:
    def test_at_most_80_columns_and_whole_words(self):
        rows = [("a name of thirty characters or so", "1.5", "wrong: 1 of 2; not judged: 3 kink")]
        text = tables.text_table(("array", "error" * 5, "verdict"), rows, "lrl")
        assert max(map(len, text.splitlines())) <= tables.WIDTH
        assert re.sub(r"\s+", " ", text).endswith("wrong: 1 of 2; not judged: 3 kink")

    def test_a_check(self):
        x = {
            "first": np.arange(1.0, 4.0),
            "the second of two long names": np.ones((2, 3)),
        }
        grad = {name: 3 * array**2 for name, array in x.items()}
        grad["first"][1] += 0.5
        check = fastgrad.check_gradient(
            lambda x: float(sum(np.sum(a**3) for a in x.values())), grad, x
        )
        lines = str(check).splitlines()
        assert max(map(len, lines)) <= tables.WIDTH
        found = check.arrays["first"]
        assert lines[1].split()[:6] == [
            "first", "(1,)", "12.5", f"{found.numerical:.6g}", "5.0e-01", f"{found.allowed:.1e}"
        ]  # fmt: skip
        # One and the same entry, and what decided on it.
        assert found.allowed < abs(found.analytic - found.numerical)
        assert check._repr_html_().count("<tr>") == 3
        assert str(found).startswith("wrong: 1 of 3; at (1,) 12.5, numerical 12")

    def test_the_plot_shows_the_same_line(self):
        pytest.importorskip("matplotlib")
        check = fastgrad.check_gradient(lambda x: float(np.sum(x**2)), [2.0, 5.0], [1.0, 2.0])
        title = check.plot().axes[1].get_title()
        assert title.replace("\n", " ") == f"x: {check.arrays['x']}"


@pytest.mark.parametrize(
    ("thing", "text"),
    [
        (SGD(0.1), "SGD(lr=0.1)"),
        (fastgrad.Momentum(), "Momentum(lr=0.01, momentum=0.9)"),
        (Adam(), "Adam(lr=0.001, beta1=0.9, beta2=0.999)"),
        (fastgrad.Affine(np.ones((3, 2)), np.ones(2)), "Affine(W: (3, 2), b: (2,))"),
        (fastgrad.Relu(), "Relu()"),
        (fastgrad.Dropout(0.3), "Dropout(dropout_ratio=0.3)"),
        (fastgrad.Pooling(2, 2), "Pooling(pool_h=2, pool_w=2, stride=2, pad=0)"),
        (
            fastgrad.Convolution(np.ones((4, 1, 3, 3)), np.ones(4), pad=1),
            "Convolution(W: (4, 1, 3, 3), b: (4,), stride=1, pad=1)",
        ),
        (fastgrad.History(np.ones(1)), "History: 1 iteration, last loss 1, 0 s"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_objects_show_themselves(thing, text):
    assert repr(thing) == text


def test_a_history_is_a_table_in_a_notebook():
    accuracies = np.array([0.0, 1.0]), np.array([0.1, 0.9]), np.array([0.1, 0.85])
    history = fastgrad.History(np.ones(5), *accuracies)
    table = history._repr_html_()
    assert "<tr><td>1</td><td>90.00%</td><td>85.00%</td></tr>" in table
    assert table.endswith(f"<p>{history!r}</p>")
    assert fastgrad.History(np.ones(5))._repr_html_() is None


def test_a_report_is_shown_in_lines():
    fastgrad.book.install()
    try:
        report = fastgrad.book.report()
    finally:
        fastgrad.book.uninstall()
    assert repr(report) == report == "fastgrad served no module."


def test_a_history_is_plotted_into_a_file(tmp_path):
    pytest.importorskip("matplotlib")
    fastgrad.History(np.ones(3)).plot(tmp_path / "loss.png")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_dir_lists_the_public_names():
    assert dir(fastgrad) == sorted(fastgrad.__all__)


# the command line --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["train", "--network", "convnet", "--activation", "sigmoid"],
            "must be relu for a convnet",
        ),
        (["train", "--learning-rate", "-1"], "must be a finite number from 0"),
    ],
)
def test_what_is_not_done_is_refused(arguments, message, capsys):
    with pytest.raises(SystemExit) as caught:
        parser.main(arguments)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_exercise_has_no_convnet(capsys):
    with pytest.raises(SystemExit):
        parser.main(["exercise", "--help"])
    assert "convnet" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["", "exercise", "train", "run", "warmup", "info"])
def test_help_has_80_columns(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        parser.main([*[name] * bool(name), "--help"])
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


def test_no_ratio_where_times_scatter():
    assert commands.Times(1.0, 1.6).scattered
    assert not commands.Times(1.0, 1.2).scattered


@pytest.mark.skipif(sys.platform != "linux", reason="finds BLAS where Linux lists it")
def test_the_textbook_loop_gets_the_faster_of_one_and_all_blas_threads():
    functions = textbook._openblas()
    if functions is None:
        pytest.skip("NumPy uses another BLAS")
    get, before = functions[0], functions[0]()
    tried = set()
    with textbook.faster_blas_threads(lambda: tried.add(get())) as said:
        count = get()
    assert get() == before
    assert count in tried == {1, before}
    assert f", with {count} BLAS thread" in said
