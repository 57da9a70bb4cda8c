import os
import resource
import signal
import time

import pytest
import torch
from torch.utils.data import Dataset

from gwsss_fast import cli
from gwsss_fast.data.loading import checked, make_loader, worker_death
from gwsss_fast.errors import GwsssError


class Numbers(Dataset):
    """0, 1, 2, ...; one of them is broken, another sends a signal to the process that reads it."""

    def __init__(self, broken=None, interrupting=None, signal=signal.SIGINT):
        self.broken, self.interrupting, self.signal = broken, interrupting, signal

    def __len__(self):
        return 6

    def __getitem__(self, position):
        if position == self.broken:
            raise GwsssError(f"number {position} is broken")
        if position == self.interrupting:
            os.kill(os.getpid(), self.signal)
        return torch.tensor(position)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("batch_size", [2, None])
def test_a_broken_item_raises_its_own_error_after_the_batches_before_it(workers, batch_size):
    batches = checked(make_loader(Numbers(broken=4), workers=workers, batch_size=batch_size))
    for expected in [[0, 1], [2, 3]] if batch_size else [0, 1, 2, 3]:
        assert next(batches).tolist() == expected
    with pytest.raises(GwsssError) as caught:
        next(batches)
    assert str(caught.value) == "number 4 is broken"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_workers_do_not_answer_what_is_meant_for_the_main_process(number):
    """Ctrl-C comes to all of the terminal, and torchrun sends SIGTERM to a process and its workers."""
    loader = make_loader(Numbers(interrupting=3, signal=number), workers=1, batch_size=3)
    assert [batch.tolist() for batch in checked(loader)] == [[0, 1, 2], [3, 4, 5]]


def test_drawing_leaves_the_random_state_alone():
    torch.manual_seed(5)
    state = torch.get_rng_state()
    assert len(list(checked(make_loader(Numbers(), batch_size=2)))) == 3
    assert torch.equal(torch.get_rng_state(), state)


class Dying(Dataset):
    """An item that kills its worker process while the main process waits for it."""

    def __init__(self, number=signal.SIGKILL):
        self.number = number

    def __len__(self):
        return 8

    def __getitem__(self, position):
        if position == 1:
            time.sleep(0.3)
            if self.number is None:
                os._exit(3)
            os.kill(os.getpid(), self.number)
        return torch.tensor(position)


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (signal.SIGKILL, r"was killed \(Killed\): most likely by the operating system, which had no memory left"),
        (signal.SIGBUS, r"was killed \(Bus error\): the shared memory \(/dev/shm\) is full"),
        (signal.SIGSEGV, r"was killed \(Segmentation fault\): a broken file may have crashed its decoder"),
        (None, "ended by itself"),
    ],
)
def test_a_worker_that_dies_is_one_clear_message(number, words):
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    with pytest.raises(GwsssError, match=rf"the loader's worker process \d+ {words}.*--workers 0.*--resume"):
        list(checked(make_loader(Dying(number=number), workers=1, batch_size=2)))


def test_other_errors_stay_what_they_are():
    class Odd(Dying):
        def __getitem__(self, position):
            raise RuntimeError("a mistake of ours")

    with pytest.raises(RuntimeError, match="a mistake of ours") as caught:
        list(checked(make_loader(Odd(), workers=1, batch_size=2)))
    assert not isinstance(caught.value, GwsssError)
    assert worker_death(RuntimeError("DataLoader worker is fine")) is None


def test_no_memory_left_in_a_worker():
    class Large(Dying):
        def __getitem__(self, position):
            raise MemoryError

    with pytest.raises(GwsssError, match="no memory left to read images"):
        list(checked(make_loader(Large(), workers=1, batch_size=2)))


def test_the_commands_tell_of_a_dead_worker_wherever_it_is_noticed(capsys):
    def body():
        raise RuntimeError("DataLoader worker (pid(s) 11, 12) exited unexpectedly")

    assert cli.run(body) == 2
    assert capsys.readouterr().err.startswith("error: the loader's worker process 11, 12 ended by itself")
