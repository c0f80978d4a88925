"""Synthetic(alpha, beta) and quadratic problems: what their definitions promise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from fedsim.data import Quadratic, Synthetic
from fedsim.errors import InputError


def client(source: Synthetic, k: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    data = source.load(seed).train
    assert data.group is not None
    return data.x[data.group == k], data.y[data.group == k]


def test_alpha_has_no_effect_and_beta_has_one() -> None:
    """As the class says: the shift u_k is common to all classes."""
    default = Synthetic(clients=8, max_size=200).load(0)
    for alpha in (0.0, 7.0):
        other = Synthetic(clients=8, max_size=200, alpha=alpha).load(0)
        np.testing.assert_array_equal(other.train.x, default.train.x)
        np.testing.assert_array_equal(other.train.y, default.train.y)
    assert (Synthetic(clients=8, max_size=200, beta=0.0).load(0).train.y != default.train.y).any()


def test_synthetic_inputs_have_the_papers_covariance() -> None:
    x = Synthetic(clients=60, iid=True, test_share=0).load(0).train.x
    assert len(x) > 5000
    variances = x.var(0)
    np.testing.assert_allclose(variances * np.arange(1, 61) ** 1.2, 1, atol=0.12)  # six standard errors
    assert np.abs(x.mean(0)).max() < 0.08
    correlation = np.corrcoef(x.T) - np.eye(60)
    assert np.abs(correlation).max() < 0.08


def test_synthetic_labels_are_the_largest_of_ten_linear_functions() -> None:
    for iid in (True, False):
        train = Synthetic(clients=8, iid=iid, max_size=300, test_share=0).load(0).train
        assert train.group is not None
        x, y, first = train.x, train.y, train.group < 5
        model = LogisticRegression(C=1e8, max_iter=1000).fit(x[first], y[first])
        assert not iid or model.score(x[first], y[first]) == 1.0
        elsewhere = model.score(x[~first], y[~first])  # on clients that it has not seen
        assert elsewhere > 0.6 if iid else elsewhere < 0.4


@pytest.mark.parametrize(("beta", "spread"), [(0.0, 0.0), (5.0, 5.0)])
def test_synthetic_beta_is_the_spread_of_the_clients_centres(beta: float, spread: float) -> None:
    data = Synthetic(clients=150, beta=beta, max_size=100).load(0).train
    centres = [data.x[data.group == k].mean() for k in range(150)]
    noise = np.sqrt(1 / 60)  # v_k has 60 entries of variance 1 around B_k
    assert np.std(centres) == pytest.approx(np.hypot(spread, noise), rel=0.25)  # four standard errors


def test_synthetic_sizes_are_bounded_and_split_as_in_the_authors_program() -> None:
    source = Synthetic(clients=300, max_size=500)
    data = source.load(0)
    assert data.test is not None
    assert data.train.group is not None
    assert data.test.group is not None
    train, test = np.bincount(data.train.group), np.bincount(data.test.group)
    sizes = train + test
    assert sizes.min() >= 50
    assert sizes.max() == 500
    np.testing.assert_array_equal(train, [int(0.9 * size) for size in sizes])
    small = sizes[sizes < 500] - 50
    assert 35 < np.median(sizes - 50) < 85  # the median of lognormal(4, 2) is 54.6
    assert len(np.unique(small)) > 100


def test_synthetic_clients_do_not_depend_on_how_many_there_are() -> None:
    few, many = client(Synthetic(clients=3), 2), client(Synthetic(clients=9), 2)
    np.testing.assert_array_equal(few[0], many[0])
    np.testing.assert_array_equal(few[1], many[1])
    assert Synthetic().load(0).digest == Synthetic().load(0).digest != Synthetic().load(1).digest


def test_synthetic_options_are_checked() -> None:
    for name in ("clients", "alpha", "beta", "max_size"):
        with pytest.raises(InputError, match=f"{name} must be >="):
            Synthetic(**{name: -1})  # type: ignore[arg-type]
    with pytest.raises(InputError, match="clients must fit in 4 GB"):
        Synthetic(clients=100_000).load(0)


def npz(path: Path, **arrays: np.ndarray) -> str:
    np.savez(path, **arrays)
    return str(path)


A = np.random.default_rng(0).normal(size=(3, 4, 2))
B = np.random.default_rng(1).normal(size=(3, 4))


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_quadratic_rows_make_the_clients_functions(tmp_path: Path, dtype: type) -> None:
    a, b, x0 = A.astype(dtype), B.astype(dtype), np.array([1, -2], dtype)
    data = Quadratic(path=npz(tmp_path / "p.npz", A=a, b=b, x0=x0, unrelated=np.array(["text"]))).load(0)
    assert (data.task, data.outputs, data.test) == ("least_squares", 1, None)
    assert data.train.x.dtype == data.train.y.dtype == dtype
    assert data.x0 is not None
    assert data.x0.dtype == dtype
    np.testing.assert_array_equal(data.x0, x0)
    x = np.array([0.3, 0.7])
    for i in range(3):
        mine = data.train.group == i
        rows, targets = data.train.x[mine], data.train.y[mine]
        mean = np.mean([4 / 2 * (row @ x - t) ** 2 for row, t in zip(rows, targets, strict=True)])
        assert mean == pytest.approx(0.5 * np.linalg.norm(A[i] @ x - B[i]) ** 2, rel=1e-5)  # float32 storage
    assert Quadratic(path=npz(tmp_path / "q.npz", A=np.asfortranarray(a), b=b)).load(0).x0 is None


NAN = np.where(np.arange(12).reshape(3, 4) == 5, np.nan, B)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"A": A}, "must hold arrays named A, b and optionally x0, got A;"),
        ({}, "got none"),
        ({"matrix": A, "b": B}, "must hold arrays named A, b and optionally x0, got matrix, b"),
        ({"a": A, "b": B}, "must hold arrays named A, b"),
        ({"A": A, "b": B, "X0": np.zeros(2)}, "must hold arrays named A, b and optionally x0, got A, b, X0"),
        ({"A": A[0], "b": B}, r"A must have shape \[n, m, d\], got \[4, 2\]"),
        ({"A": A[:, :0], "b": B}, r"A must have shape \[n, m, d\], got \[3, 0, 2\]"),
        ({"A": A, "b": B.T}, r"b must have shape \[n, m\] = \[3, 4\], got \[4, 3\]"),
        ({"A": A, "b": B, "x0": np.zeros(3)}, r"x0 must have shape \[d\] = \[2\], got \[3\]"),
        ({"A": A, "b": B.astype(int)}, "must all be float64 or all float32, got b of int64"),
        ({"A": A.astype(np.float32), "b": B}, "got b of float64"),
        ({"A": A.astype(complex), "b": B}, "got A of complex128"),
        ({"A": A, "b": NAN}, "b must be finite, got 1 NaN or infinite entries"),
        ({"A": np.array([[["x"]]], dtype=object), "b": B}, "cannot be read as an .npz archive of numbers"),
    ],
)
def test_wrong_quadratic_files_are_refused(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        Quadratic(path=npz(tmp_path / "p.npz", **arrays)).load(0)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_npz_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="path must be an existing"):
        Quadratic(path=str(tmp_path / "none.npz")).load(0)
    np.save(tmp_path / "a.npy", A)
    with pytest.raises(InputError, match=r"got a single \.npy array"):
        Quadratic(path=str(tmp_path / "a.npy")).load(0)
    whole = tmp_path / "a.npz"
    npz(whole, A=A, b=B)
    for name, content in (("text", b"hello"), ("half", whole.read_bytes()[:300]), ("empty", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=r"cannot be read as an \.npz archive"):
            Quadratic(path=str(tmp_path / name)).load(0)


def test_a_generated_quadratic_is_as_heterogeneous_as_asked() -> None:
    for heterogeneity in (0.0, 2.0):
        data = Quadratic(clients=6, rows=30, dim=4, heterogeneity=heterogeneity).load(0)
        assert data.train.x.dtype == np.float64
        own = []
        for i in range(6):
            mine = data.train.group == i
            solution, residual, *_ = np.linalg.lstsq(data.train.x[mine], data.train.y[mine], rcond=None)
            assert residual[0] < 1e-20  # b_i is in the range of A_i: rounding only
            own.append(solution)
        spread = np.std(own, axis=0).mean()
        assert spread < 1e-10 if heterogeneity == 0 else 0.8 < spread < 3.2
    one, again, other = (Quadratic().load(seed).digest for seed in (0, 0, 1))
    assert one == again != other


def test_quadratic_options_are_checked() -> None:
    for name in ("clients", "rows", "dim"):
        with pytest.raises(InputError, match=f"{name} must be >= 1, got 0"):
            Quadratic(**{name: 0})
    with pytest.raises(InputError, match="heterogeneity must be >= 0"):
        Quadratic(heterogeneity=-1.0)
    with pytest.raises(InputError, match="clients must fit in 4 GB"):
        Quadratic(clients=10_000, rows=1000, dim=1000)


def test_scaled_identities_are_those_of_the_paper() -> None:
    """A_i = i / sqrt(n) I and b_i of deviation zeta / i, so that gradients at 0 have deviation zeta / sqrt(n)."""
    n, d, zeta = 12, 400, 3.0
    data = Quadratic(clients=n, rows=d, dim=d, heterogeneity=zeta, family="scaled").load(0)
    assert data.train.x.dtype == data.train.y.dtype == np.float64
    assert data.x0 is None
    for i in range(1, n + 1):
        mine = data.train.group == i - 1
        np.testing.assert_array_equal(data.train.x[mine], i / np.sqrt(n) * np.eye(d))
        b = data.train.y[mine]
        assert i * b.std() == pytest.approx(zeta, rel=6 / np.sqrt(2 * d))  # six standard errors
        assert abs(i * b.mean()) < 6 * zeta / np.sqrt(d)
    b = data.train.y.reshape(n, d)
    assert np.abs(np.corrcoef(b) - np.eye(n)).max() < 6 / np.sqrt(d)


def test_scaled_identities_without_heterogeneity_share_the_minimiser_zero() -> None:
    options = {"clients": 3, "rows": 4, "dim": 4, "family": "scaled"}
    assert not Quadratic(heterogeneity=0.0, **options).load(0).train.y.any()  # type: ignore[arg-type]
    one, again, other, gaussian = (
        Quadratic(**options | more).load(seed).digest  # type: ignore[arg-type]
        for seed, more in ((0, {}), (0, {}), (1, {}), (0, {"family": "gaussian"}))
    )
    assert one == again
    assert len({one, other, gaussian}) == 3
    with pytest.raises(InputError, match=r"^rows must be dim = 4 for family=scaled, got 5$"):
        Quadratic(clients=3, rows=5, dim=4, family="scaled")
