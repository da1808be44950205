"""Tensors travel whole and in order, and whoever waits for them waits for a limited time."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
import torch

from posttrain.inference import weight_transfer
from posttrain.inference.weight_transfer import (
    GlooGroup,
    Manifest,
    Sender,
    TensorInfo,
    TransferError,
    buckets,
    open_sender,
)

HERE = "127.0.0.1"


def tensors() -> list[tuple[str, torch.Tensor]]:
    """Tensors of several types, of odd sizes, one larger than a bucket, one empty, and one not contiguous."""
    torch.manual_seed(0)
    return [
        ("odd", torch.randint(0, 9, (7,), dtype=torch.uint8)),
        ("a", torch.randn(3, 5)),
        ("half", torch.randn(11).bfloat16()),
        ("b", torch.randn(64, 64)),
        ("none", torch.empty(0, 4)),
        ("turned", torch.randn(6, 2).T),
        ("scalar", torch.tensor(3.5, dtype=torch.float64)),
    ]


def described(named: list[tuple[str, torch.Tensor]]) -> Manifest:
    return Manifest(
        tuple(TensorInfo(name, str(t.dtype).removeprefix("torch."), tuple(t.shape)) for name, t in named)
    )


@pytest.fixture(autouse=True)
def small_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_transfer, "CPU_BUCKET_BYTES", 100)


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor() as executor:
        yield executor


def receive(sender: Sender, rank: int, manifest: Manifest) -> list[tuple[str, torch.Tensor]]:
    group = GlooGroup(sender.group.at(rank), rank)
    received = list(group.receive(manifest.tensors))
    group.close()
    return received


def test_every_member_receives_every_tensor_as_it_was(threads: ThreadPoolExecutor) -> None:
    named = tensors()
    manifest = described(named)
    sender = open_sender("gloo", HERE, 3, timeout=20)
    receivers = [threads.submit(receive, sender, rank, manifest) for rank in (1, 2)]
    sender.join()
    sender.send(manifest, iter(named))
    for receiver in receivers:
        for (name, tensor), (sent, expected) in zip(receiver.result(), named, strict=True):
            assert name == sent
            assert tensor.dtype == expected.dtype
            assert torch.equal(tensor, expected)
    sender.close()


def test_a_bucket_ends_once_it_is_full() -> None:
    manifest = described(tensors())
    sizes = [sum(tensor.num_bytes for tensor in bucket) for bucket in buckets(manifest.tensors, 100)]
    assert sum(sizes) == manifest.num_bytes
    assert all(size > 100 for size in sizes[:-1])
    assert len(sizes) == 2


def test_a_member_that_does_not_come_is_waited_for_a_limited_time() -> None:
    begun = time.monotonic()
    sender = open_sender("gloo", HERE, 2, timeout=1)
    with pytest.raises(TransferError, match=r"not all 2 members of the weight transfer met at 127\.0\.0\.1"):
        sender.join()
    assert time.monotonic() - begun < 10


def test_a_group_that_is_gone_is_no_place_to_join() -> None:
    sender = open_sender("gloo", HERE, 2, timeout=1)
    group = sender.group
    del sender
    with pytest.raises(TransferError, match=r"no learner waits for engines at 127\.0\.0\.1"):
        GlooGroup(group, 1)


@pytest.mark.parametrize("fault", ["stalls", "leaves"])
def test_a_member_that_stalls_or_leaves_halfway_ends_the_transfer(
    fault: str, threads: ThreadPoolExecutor
) -> None:
    large = torch.zeros(16_000_000)  # more than sockets hold
    named = [*tensors(), ("large", large), ("larger", large)]
    manifest = described(named)
    sender = open_sender("gloo", HERE, 3, timeout=2)
    over = threading.Event()

    def receive_half() -> None:
        group = GlooGroup(sender.group, 2)
        next(group.receive(manifest.tensors))
        if fault == "stalls":
            over.wait(20)
        else:
            group.close()

    def send() -> None:
        sender.send(manifest, iter(named))

    well: Future = threads.submit(receive, sender, 1, manifest)
    broken = threads.submit(receive_half)
    sender.join()
    begun = time.monotonic()
    sending = threads.submit(send)
    with pytest.raises(TransferError, match=r"broke off at [\d,]+ of [\d,]+ bytes"):
        sending.result(20)
    assert time.monotonic() - begun < 15
    over.set()
    assert broken.exception(20) is None
    assert well.exception(20) is None or isinstance(well.exception(), TransferError)


@pytest.mark.parametrize(
    ("held", "said"),
    [
        (("a", torch.zeros(3, 4)), r"announced a as float32 \(3, 5\), and holds a as float32 \(3, 4\)"),
        (("c", torch.zeros(3, 5)), "holds c as"),
        (None, "holds nothing as"),
    ],
)
def test_a_learner_that_holds_other_tensors_than_it_announced_says_so(
    held: tuple[str, torch.Tensor] | None, said: str, threads: ThreadPoolExecutor
) -> None:
    sender = open_sender("gloo", HERE, 2, timeout=2)
    manifest = Manifest((TensorInfo("a", "float32", (3, 5)),))
    receiver = threads.submit(receive, sender, 1, manifest)
    sender.join()
    with pytest.raises(TransferError, match=said):
        sender.send(manifest, iter([held] if held else []))
    assert isinstance(receiver.exception(20), TransferError)


def test_an_engine_is_told_which_names_it_lacks() -> None:
    manifest = Manifest(
        (TensorInfo("a", "float32", (1,)), TensorInfo("b", "float32", (1,))), frozenset({"head"})
    )
    assert manifest.differences({"a", "b"}) == []
    assert manifest.differences({"a", "b", "head"}) == []
    assert manifest.differences({"a", "c"}) == ["b", "c"]
