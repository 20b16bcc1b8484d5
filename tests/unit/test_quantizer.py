"""The codebook against formulas written out: assignment, gradients, averages, starts, restarts."""

from __future__ import annotations

import socket

import pytest
import torch
from torch import distributed, multiprocessing

from ppl_models.errors import PplError, ProgramError, UnknownNameError
from ppl_models.nets import Codebook, fingerprint_of
from ppl_models.nets.kmeans import kmeans

KINDS = [("euclidean", "ema"), ("euclidean", "gradient"), ("cosine", "ema"), ("cosine", "gradient")]


def codebook(num_codes=5, code_dim=3, *, seed=0, **options):
    torch.manual_seed(seed)
    found = Codebook(num_codes, code_dim, **options).double()
    with torch.no_grad():  # codes as large as the features are
        found.vectors.copy_(torch.randn(num_codes, code_dim, dtype=torch.float64))
        if found.update == "ema":
            found.sums.copy_(found.vectors)
    return found


def features(batch=4, code_dim=3, grid=(2, 3), *, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, code_dim, *grid, generator=generator, dtype=torch.float64)


def rows_of(grid):
    """Features (B, D, h, w) place by place, written out: (N, D)."""
    size, _, height, width = grid.shape
    places = [(b, i, j) for b in range(size) for i in range(height) for j in range(width)]
    return torch.stack([grid[b, :, i, j] for b, i, j in places])


@pytest.mark.parametrize(("distance", "update"), KINDS)
def test_codes_are_the_nearest_and_vectors_exactly_theirs(distance, update):
    book, given = codebook(distance=distance, update=update).eval(), features()
    found = book(given)
    rows = rows_of(given)
    if distance == "euclidean":
        nearest = torch.cdist(rows, book.vectors).argmin(-1)
    else:
        nearest = torch.cosine_similarity(rows[:, None], book.vectors[None], dim=-1).argmax(-1)
    assert torch.equal(found.codes, nearest.reshape(4, 2, 3))
    assert torch.equal(found.vectors, book.look_up(found.codes))
    torch.testing.assert_close(rows_of(found.vectors.detach()), book.e().detach()[nearest])


@pytest.mark.parametrize("update", ["ema", "gradient"])
def test_the_gradient_goes_straight_through(update):
    book, given = codebook(update=update).eval(), features().requires_grad_()
    weight = features(seed=2)
    (book(given).vectors * weight).sum().backward()
    assert torch.equal(given.grad, weight)
    assert all(p.grad is None for p in book.parameters())


def test_the_losses_of_the_paper_and_their_gradients():
    book = codebook(update="gradient", commitment_cost=0.7).eval()
    given = features().requires_grad_()
    found = book(given)
    gap = (given - book.look_up(found.codes)).detach()
    torch.testing.assert_close(found.commitment, 0.7 * gap.square().sum((1, 2, 3)))
    torch.testing.assert_close(found.codebook, gap.square().sum((1, 2, 3)))
    found.commitment.sum().backward()
    torch.testing.assert_close(given.grad, 2 * 0.7 * gap)
    assert book.vectors.grad is None
    given.grad = None
    found.codebook.sum().backward()
    assert given.grad is None
    expected = torch.zeros_like(book.vectors)
    for row, code in zip(rows_of(gap), found.codes.flatten(), strict=True):
        expected[code] -= 2 * row
    torch.testing.assert_close(book.vectors.grad, expected)


def test_running_averages_step_by_step_as_in_the_textbook():
    """N ← γN + (1 − γ)n, m ← γm + (1 − γ)Σf, e = m / N, N smoothed by Laplace; float64."""
    decay, smoothing = 0.9, 1e-3
    book = codebook(decay=decay, smoothing=smoothing).train()
    num_codes, dim = book.vectors.shape
    counts = [1.0] * num_codes
    sums = [book.vectors[k].tolist() for k in range(num_codes)]
    vectors = [list(row) for row in sums]
    for step in range(6):
        given = features(seed=step)
        new_counts, new_sums = [0] * num_codes, [[0.0] * dim for _ in range(num_codes)]
        for row in rows_of(given).tolist():
            gaps = [sum((a - b) ** 2 for a, b in zip(row, e, strict=True)) for e in vectors]
            k = gaps.index(min(gaps))
            new_counts[k] += 1
            new_sums[k] = [a + b for a, b in zip(new_sums[k], row, strict=True)]
        for k in range(num_codes):
            counts[k] = decay * counts[k] + (1 - decay) * new_counts[k]
            sums[k] = [
                decay * a + (1 - decay) * b for a, b in zip(sums[k], new_sums[k], strict=True)
            ]
        total = sum(counts)
        for k in range(num_codes):
            smoothed = (counts[k] + smoothing) / (total + num_codes * smoothing) * total
            vectors[k] = [a / smoothed for a in sums[k]]
        found = book(given)
        expected = torch.tensor(vectors, dtype=torch.float64)
        torch.testing.assert_close(book.vectors, expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(book.counts, torch.tensor(counts, dtype=torch.float64))
        # The batch is coded by the codebook as it is after the step.
        assert torch.equal(found.vectors, book.look_up(found.codes))


@pytest.mark.parametrize("update", ["ema", "gradient"])
def test_nothing_is_learned_in_evaluation_nor_without_gradients(update):
    book = codebook(update=update, restart_below=0.5)
    before = {name: value.clone() for name, value in book.state_dict().items()}
    book.eval()(features())
    with torch.no_grad():
        book.train()(features())
    assert all(torch.equal(book.state_dict()[name], value) for name, value in before.items())


@pytest.mark.parametrize(("distance", "update"), KINDS)
def test_unused_codes_are_set_on_features_of_the_batch(distance, update):
    book = codebook(distance=distance, update=update, decay=0.5, restart_below=0.1).train()
    far = torch.full((3,), -50.0, dtype=torch.float64)
    with torch.no_grad():
        book.vectors.copy_(torch.eye(5, 3).double())
        book.vectors[3:] = far
        book.counts.fill_(48 / 5)  # as if all had been used alike
        if update == "ema":
            book.sums.copy_(book.vectors * 48 / 5)
    given = features(8).abs()  # away from the last two codes, in angle too
    rows = book.rows(given)
    steps = 0
    while float((book.vectors[3:].detach() - far).norm(dim=-1).min()) < 1.0:
        before = book.vectors.detach().clone()
        book(given)
        steps += 1
    assert steps == 4  # 0.5 ** 4 is less than a tenth of the mean use
    gaps = (rows[:, None] - book.e()[3:]).norm(dim=-1).min(0).values
    assert float(gaps.max().detach()) < 1e-3
    assert float(book.counts[3:].min()) > 0.1 * float(book.counts.mean())
    if update == "gradient":  # nothing but the restart moves vectors here
        assert torch.equal(book.vectors[:3], before[:3])


def test_codes_are_left_alone_where_no_restart_is_asked_for():
    book = codebook(update="gradient", decay=0.5).train()
    before = book.vectors.detach().clone()
    for _ in range(20):
        book(features())
    assert torch.equal(book.vectors, before)


@pytest.mark.parametrize("update", ["ema", "gradient"])
def test_a_start_on_clusters(update):
    """Five clusters far apart: every code is at the mean of one, with its share."""
    centres = 10 * torch.randn(5, 3, generator=torch.Generator().manual_seed(3)).double()
    sizes = [10, 20, 30, 40, 50]
    noise = torch.Generator().manual_seed(4)
    clouds = [
        c + 0.1 * torch.randn(n, 3, generator=noise).double()
        for c, n in zip(centres, sizes, strict=True)
    ]
    book = codebook(update=update)
    book.start(torch.cat(clouds), 300, torch.Generator().manual_seed(0))
    order = torch.cdist(centres, book.vectors).argmin(-1)
    means = torch.stack([cloud.mean(0) for cloud in clouds])
    torch.testing.assert_close(book.vectors.detach()[order], means)
    torch.testing.assert_close(book.counts[order], 2.0 * torch.tensor(sizes).double())
    assert bool(book.started)


def test_a_start_needs_as_many_features_as_codes():
    with pytest.raises(ProgramError, match="5 codes needs as many features, and the data have 4"):
        codebook().start(features(1, grid=(2, 2)), 4, torch.Generator())


def test_clusters_of_fewer_distinct_points_than_codes():
    """The rest of the codes stands on the same points, and is not used."""
    points = torch.tensor([[0.0, 1.0], [3.0, 3.0]]).repeat(10, 1)
    centres, shares = kmeans(points, 4, generator=torch.Generator().manual_seed(0))
    assert {tuple(c) for c in centres.tolist()} == {(0.0, 1.0), (3.0, 3.0)}
    assert sorted(shares.tolist()) == [0.0, 0.0, 0.5, 0.5]


def test_the_state_dict_holds_all_that_it_learns():
    book, twin = (codebook(restart_below=0.2, seed=s).train() for s in (0, 7))
    book(features())
    twin.load_state_dict(book.state_dict())
    assert fingerprint_of([twin]) == fingerprint_of([book])
    for one in (book, twin):
        torch.manual_seed(2)
        for seed in range(5):
            one(features(seed=seed))
    assert all(torch.equal(twin.state_dict()[k], v) for k, v in book.state_dict().items())
    assert fingerprint_of([book]) != fingerprint_of([codebook()])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_codes": 1}, "num_codes must be a whole number of at least 2, got 1"),
        ({"num_codes": 2.5}, "num_codes must be a whole number of at least 2, got 2.5"),
        ({"code_dim": 0}, "code_dim must be a whole number of at least 1"),
        ({"decay": 1.0}, "0 ≤ decay < 1"),
        ({"commitment_cost": -1.0}, "commitment_cost ≥ 0"),
        ({"restart_below": 1.0}, "share of the mean use"),
    ],
)
def test_numbers_out_of_range_are_refused(options, message):
    with pytest.raises(PplError, match=message):
        Codebook(**({"num_codes": 4, "code_dim": 2} | options))


def test_unknown_names_are_refused():
    with pytest.raises(UnknownNameError, match=r"euclidian.*euclidean"):
        Codebook(4, 2, distance="euclidian")
    with pytest.raises(UnknownNameError, match="codebook update"):
        Codebook(4, 2, update="sgd")


def test_codes_out_of_range_are_refused():
    with pytest.raises(ProgramError, match="codes from 0 to 5, but the codebook has 5: 0 to 4"):
        codebook().look_up(torch.tensor([[0, 5]]))


def _train_in_a_process(rank, port, restart_below, queue):
    address = f"tcp://localhost:{port}"
    distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    book = codebook(restart_below=restart_below, decay=0.5).train()
    torch.manual_seed(rank)  # draws of its own
    for step in range(8):
        book(features(seed=10 * step + rank))
    queue.put((rank, {name: value.tolist() for name, value in book.state_dict().items()}))
    distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("restart_below", [0.0, 0.5])
def test_two_processes_keep_one_codebook(restart_below):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    workers = [
        context.Process(target=_train_in_a_process, args=(rank, port, restart_below, queue))
        for rank in range(2)
    ]
    for worker in workers:
        worker.start()
    states = dict(queue.get() for _ in workers)
    for worker in workers:
        worker.join()
    assert states[0] == states[1]
    if restart_below == 0.0:  # as one process with both halves of each batch
        book = codebook(decay=0.5).train()
        for step in range(8):
            book(torch.cat([features(seed=10 * step), features(seed=10 * step + 1)]))
        torch.testing.assert_close(book.vectors, torch.tensor(states[0]["vectors"]).double())


@pytest.mark.filterwarnings("ignore")  # of its own imports
def test_running_averages_are_those_of_vector_quantize_pytorch():
    """Of the extra ``benchmarks``; it computes in float32, and takes the codes before the step."""
    peers = pytest.importorskip("vector_quantize_pytorch")
    book = codebook(decay=0.9).float().train()
    theirs = peers.VectorQuantize(dim=3, codebook_size=5, decay=0.9, eps=1e-5).train()
    inner = theirs._codebook
    inner.embed.copy_(book.vectors[None])
    inner.embed_avg.copy_(book.sums[None])
    for step in range(8):
        given = features(seed=step).float()
        before = book.vectors.clone()
        book(given)
        _, codes, _ = theirs(rows_of(given)[None])
        assert torch.equal(codes[0], torch.cdist(rows_of(given), before).argmin(-1))
        torch.testing.assert_close(book.counts, inner.cluster_size[0])
        torch.testing.assert_close(book.vectors, inner.embed[0])
