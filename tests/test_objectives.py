"""Prices of a code on the installed package, against values worked out by hand and slow references."""
import math
from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cellinterp.data import simulate_nuclei
from cellinterp.factors import VAE
from cellinterp.factors.objectives import (
    DIP,
    OBJECTIVES,
    Discriminator,
    FactorTC,
    contrast_loss,
    discriminator_loss,
    kl_per_factor,
    log_density,
    log_weights,
    shuffled_columns,
    total_correlation,
)

SMALL = dict(widths=(4, 4, 8, 8), hidden=16, device="cpu", random_state=0)


def codes(B=12, d=3, seed=0):
    g = torch.Generator().manual_seed(seed)
    mu, logvar = torch.randn(B, d, generator=g), 0.5 * torch.randn(B, d, generator=g) - 1
    return mu, logvar, mu + (0.5 * logvar).exp() * torch.randn(B, d, generator=g)


def gaussian_tc(cov): return 0.5 * (np.log(np.diag(cov)).sum() - np.linalg.slogdet(cov)[1])


@pytest.mark.parametrize(
    "mu,variance,nats", [(0, 1, 0), (1, 1, 0.5), (0, math.e, (math.e - 2) / 2), (2, 1 / math.e, (4 + 1 / math.e) / 2)]
)
def test_kl_closed_form(mu, variance, nats):
    assert kl_per_factor(torch.tensor([[float(mu)]]), torch.tensor([[math.log(variance)]])).item() == pytest.approx(
        nats, abs=1e-6
    )


@settings(max_examples=25, deadline=None)
@given(n=st.integers(3, 6), batch=st.integers(2, 5), seed=st.integers(0, 99))
def test_stratified_density_is_unbiased(n, batch, seed):
    "The mean over every ordered batch that begins with image 0 is the density of the whole mixture."
    batch = min(batch, n)
    q = torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    w = log_weights(batch, n, "stratified")[0].exp().double()
    mean = np.mean([float(w @ q[[0, *rest]]) for rest in permutations(range(1, n), batch - 1)])
    assert mean == pytest.approx(q.mean().item(), rel=1e-6)


@pytest.mark.parametrize("sampling", ["weighted", "stratified"])
def test_total_correlation_against_loops(sampling):
    mu, logvar, z = codes()
    B, d, N, M = 12, 3, 200, 11
    def density(i, k, j):
        return math.exp(
            -0.5 * ((z[i, j] - mu[k, j]) ** 2 / logvar[k, j].exp() + logvar[k, j] + math.log(2 * math.pi))
        )
    def weight(i, k):
        if sampling == "weighted": return 1 / (N * B)
        return 1 / N if i == k else (N - M) / (N * M) if k == (i + 1) % B else 1 / M
    total = 0
    for i in range(B):
        total += math.log(sum(weight(i, k) * math.prod(density(i, k, j) for j in range(d)) for k in range(B)))
        total -= sum(math.log(sum(weight(i, k) * density(i, k, j) for k in range(B))) for j in range(d))
    assert total_correlation(z, mu, logvar, N, sampling).item() == pytest.approx(total / B, abs=1e-4)


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9])
def test_total_correlation_of_gaussians(rho):
    "z = μ + noise is Gaussian with a covariance that we know; the whole data set is the batch."
    torch.manual_seed(0)
    n, noise = 1500, 0.5
    cov = np.array([[1, rho, 0], [rho, 1, 0], [0, 0, 1]])
    mu = torch.randn(n, 3) @ torch.tensor(np.linalg.cholesky(cov), dtype=torch.float32).T
    logvar = torch.full((n, 3), 2 * math.log(noise))
    z, truth = mu + noise * torch.randn(n, 3), gaussian_tc(cov + noise**2 * np.eye(3))
    assert total_correlation(z, mu, logvar, n, "stratified").item() == pytest.approx(truth, abs=.12)
    # off by (d − 1) log N, as stated
    assert total_correlation(z, mu, logvar, n).item() - 2 * math.log(n) == pytest.approx(truth, abs=.12)


def test_discriminator_learns_the_total_correlation():
    torch.manual_seed(0)
    rho = 0.8
    def sample(n):
        return torch.randn(n, 2) @ torch.tensor([[1, 0], [rho, math.sqrt(1 - rho**2)]]).T
    D = Discriminator(2, (48, 48))
    adam = torch.optim.Adam(D.parameters(), lr=3e-3)
    assert abs(D(sample(2000)).mean().item()) < .25                                     # knows nothing yet
    for _ in range(500):
        adam.zero_grad()
        discriminator_loss(D, sample(256)).backward()
        adam.step()
    z = sample(4000)
    estimate = (FactorTC(2.0).price(torch.zeros(1, 2), torch.zeros(1, 2), z, network=D) / 2).item()
    # 0.51 nats
    assert estimate == pytest.approx(gaussian_tc(np.array([[1, rho], [rho, 1]])), abs=.12)


def test_factor_gradients_stay_apart():
    mu, logvar, z = codes()
    z = z.requires_grad_()
    D = Discriminator(3, (8,))
    assert FactorTC(3.0).price(mu, logvar, z, network=D).item() == pytest.approx(
        kl_per_factor(mu, logvar).sum().item() + 3 * D(z).mean().item(), rel=1e-5
    )
    FactorTC(1.0).price(mu, logvar, z, network=D).backward()
    assert z.grad.abs().sum() > 0 and all(p.grad is None for p in D.parameters())
    # d TC / dz is the discriminator's own gradient
    expected = torch.autograd.grad(D(z).mean(), z)[0]
    torch.testing.assert_close(z.grad, expected)
    z.grad = None
    discriminator_loss(D, z).backward()
    assert z.grad is None and all(p.grad is not None for p in D.parameters())


def test_shuffles_are_per_dimension_and_keep_the_marginals():
    torch.manual_seed(0)
    a = torch.randn(2000, 1)
    z = torch.cat([a, a, -a], 1)
    s = shuffled_columns(z)
    torch.testing.assert_close(s.sort(0).values, z.sort(0).values)
    assert np.abs(np.corrcoef(s.T.numpy()) - np.eye(3)).max() < 5 / math.sqrt(2000)       # was ±1


@pytest.mark.parametrize(
    "kind,expected", [("i", 3 * 2 * 1.0 + 30 * ((2 - 1) ** 2 + 0)), ("ii", 3 * 2 * 1.0 + 3 * (1.5**2 + 0.25**2))]
)
def test_dip_on_a_known_covariance(kind, expected):
    # Cov = [[2, 1], [1, 1]] about a mean of 7
    mu = torch.tensor([[2.0, 0.0], [-2.0, 0.0], [0.0, 1.0], [0.0, -1.0]]) @ torch.tensor([[1.0, 0.5], [0.0, 1.0]]) + 7
    logvar = torch.log(torch.tensor([[0.5, 0.25]])).expand(4, 2)
    price = DIP(kind, lambda_od=3.0).price(mu, logvar, None) - kl_per_factor(mu, logvar).sum()
    assert price.item() == pytest.approx(expected, abs=1e-3)


def test_dip_is_zero_on_the_identity():
    mu = torch.tensor([[1., 1.], [1., -1.], [-1., 1.], [-1., -1.]])
    assert (
        DIP("i").price(mu, torch.zeros(4, 2), None) - kl_per_factor(mu, torch.zeros(4, 2)).sum()
    ).item() == pytest.approx(0, abs=1e-6)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999), name=st.sampled_from(sorted(set(OBJECTIVES) - {"factor"})))
def test_prices_do_not_see_the_order_or_the_sign_of_factors(seed, name):
    mu, logvar, z = codes(seed=seed)
    def price(mu, logvar, z):
        return OBJECTIVES[name].price(mu, logvar, z, progress=.5, n_rows=50)
    order, sign = torch.randperm(3, generator=torch.Generator().manual_seed(seed)), torch.tensor([1., -1., -1.])
    a, b = price(mu, logvar, z), price((mu * sign)[:, order], logvar[:, order], (z * sign)[:, order])
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-3)


def test_sampling_is_checked():
    with pytest.raises(ValueError, match="sampling: 'all'; expected 'weighted' or 'stratified'"):
        total_correlation(*[t for t in codes()][::-1], 10, "all")
    assert log_density(torch.tensor(0.0), torch.tensor(0.0), torch.tensor(0.0)).item() == pytest.approx(
        -0.5 * math.log(2 * math.pi)
    )


# one argument away

@pytest.fixture(scope="module")
def cells(): return simulate_nuclei(60, size=32, random_state=0)


@pytest.mark.parametrize("objective", sorted(OBJECTIVES))
def test_every_objective_trains_and_repeats(cells, objective):
    priced = FactorTC(units=(8, 8)) if objective == "factor" else objective
    def make():
        return VAE(3, priced, max_steps=6, batch_size=16, **SMALL).fit(cells.images)
    a, b = make(), make()
    assert np.isfinite(a.history_.loss).all() and np.array_equal(a.transform(cells.images), b.transform(cells.images))
    assert not any("discriminator" in k for k in a.module_.state_dict())                # it served its purpose


def test_the_discriminator_trains_by_its_own_rule(cells, monkeypatch):
    "Adam 1e-4 (0.5, 0.9), constant, no decay, while the VAE follows its own one-cycle."
    seen = []
    real = torch.optim.AdamW.step
    def step(self, *a, **k):
        seen.append(
            [(g["lr"], g["betas"], g["weight_decay"], sum(p.numel() for p in g["params"])) for g in self.param_groups]
        )
        return real(self, *a, **k)
    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    VAE(3, FactorTC(units=(8, 8)), max_steps=8, batch_size=16, **SMALL).fit(cells.images)
    assert {s[1] for s in seen} == {(1e-4, (0.5, 0.9), 0.0, 3 * 8 + 8 + 8 * 8 + 8 + 8 + 1)}
    assert len({s[0][0] for s in seen}) > 3


def test_factor_vae_resumes_as_if_unbroken(cells, tmp_path, monkeypatch):
    def make(folder, **k):
        return VAE(
            3, FactorTC(units=(8,)), max_steps=260, batch_size=8, checkpoint=folder, **SMALL
        )
    whole = make(None).fit(cells.images)
    class Power(Exception): pass
    import cellinterp.factors.vae_loss as module
    real, calls = module.discriminator_loss, [0]
    def failing(*a):
        calls[0] += 1
        # after the checkpoint at step 200
        if calls[0] == 230: raise Power
        return real(*a)
    monkeypatch.setattr(module, "discriminator_loss", failing)
    with pytest.raises(Power): make(str(tmp_path / "c")).fit(cells.images)
    monkeypatch.setattr(module, "discriminator_loss", real)
    resumed = make(str(tmp_path / "c")).fit(cells.images)
    assert np.array_equal(whole.transform(cells.images), resumed.transform(cells.images))


@pytest.mark.parametrize("kind", ["i", "ii"])
def test_dip_makes_free_codes_uncorrelated(kind):
    "Descent on the codes themselves, which begin with a correlation of 0.9."
    torch.manual_seed(0)
    mu = torch.randn(200, 3) @ torch.tensor([[1, 0.9, 0], [0, 0.44, 0], [0, 0, 1]])
    logvar = torch.full((200, 3), -2.0)
    def distance():
        return np.linalg.norm(
            np.cov(mu.detach().T, ddof=0) + (np.diag(logvar.exp().mean(0).detach()) if kind == "ii" else 0) - np.eye(3)
        )
    before = distance()
    mu.requires_grad_()
    logvar.requires_grad_()
    adam = torch.optim.Adam([mu, logvar], lr=0.02)
    for _ in range(300):
        adam.zero_grad()
        DIP(kind, lambda_od=100.0).price(mu, logvar, None).backward()
        adam.step()
    assert distance() < 0.05 < 1 < before


def test_constants_reach_their_price(cells):
    "Between λ = 0 and λ = 20 the codes of the same network come close to unit covariance."
    def distance(lambda_od):
        model = VAE(3, DIP("ii", lambda_od), max_steps=100, batch_size=40, learning_rate=1e-2, **SMALL).fit(
            cells.images[:40]
        )
        # as in training: the batch's own norms
        with torch.no_grad():
            mu, logvar = model.module_.train().encode(model._scaled(torch.as_tensor(cells.images[:40])))
        return np.linalg.norm(np.cov(mu.T, ddof=0) + np.diag(logvar.exp().mean(0)) - np.eye(3))
    assert distance(20.0) < 0.3 * distance(0.0)


@pytest.mark.parametrize("B,d,temperature", [(1, 3, .1), (2, 1, .5), (7, 4, .1), (12, 32, 1.)])
def test_contrast_against_a_double_loop(B, d, temperature):
    a, b = (codes(B, d, seed)[0] for seed in (1, 2))
    z = [v / np.linalg.norm(v) for v in torch.cat([a, b]).double().numpy()]
    terms = []
    for i in range(2 * B):
        e = [math.exp(z[i] @ z[k] / temperature) for k in range(2 * B) if k != i]
        terms.append(-math.log(math.exp(z[i] @ z[(i + B) % (2 * B)] / temperature) / sum(e)))
    a.requires_grad_()
    loss = contrast_loss(a, b, temperature)
    assert loss.item() == pytest.approx(np.mean(terms), rel=1e-4, abs=1e-6)
    loss.backward()
    assert torch.isfinite(a.grad).all()
