"""The MLP VAE in numpyro: the same network, objective and optimizer, its step jitted."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from numpyro.infer import SVI, TraceMeanField_ELBO
from torch import Tensor


def dense(name: str, x: jax.Array, size: int) -> jax.Array:
    """A linear layer, initialized as torch's."""
    bound = x.shape[-1] ** -0.5

    def uniform(shape: tuple[int, ...]) -> Callable[[jax.Array], jax.Array]:
        return lambda key: jax.random.uniform(key, shape, minval=-bound, maxval=bound)

    weight = numpyro.param(f"{name}.weight", uniform((x.shape[-1], size)))
    return x @ weight + numpyro.param(f"{name}.bias", uniform((size,)))


def model(x: jax.Array) -> None:
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", dist.Normal(jnp.zeros(20), 1.0).to_event(1))
        logits = dense("logits", jax.nn.relu(dense("decoder", z, 400)), 784)
        numpyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)


def guide(x: jax.Array) -> None:
    with numpyro.plate("data", len(x)):
        hidden = jax.nn.relu(dense("encoder", x, 400))
        loc, raw = jnp.split(dense("posterior", hidden, 40), 2, -1)
        numpyro.sample("z", dist.Normal(loc, jax.nn.softplus(raw) + 1e-4).to_event(1))


def numpyro_step(x: Tensor) -> Callable[[], object]:
    """A step on these images (B, 1, 28, 28), compiled."""
    images = jnp.asarray(x.flatten(1).cpu().numpy())
    svi = SVI(model, guide, numpyro.optim.Adam(1e-3), TraceMeanField_ELBO())
    update = jax.jit(svi.update, donate_argnums=0)
    state = svi.init(jax.random.PRNGKey(0), images)

    def once() -> None:
        nonlocal state
        state, loss = update(state, images)
        loss.block_until_ready()

    once()
    return once
