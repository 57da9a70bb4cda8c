import os
import signal

import pytest
import torch
from torch.utils.data import Dataset

from gwsss_fast.data.loading import checked, make_loader
from gwsss_fast.errors import GwsssError


class Numbers(Dataset):
    """0, 1, 2, ...; one of them is broken, another presses Ctrl-C where it is read."""

    def __init__(self, broken=None, interrupting=None):
        self.broken, self.interrupting = broken, interrupting

    def __len__(self):
        return 6

    def __getitem__(self, position):
        if position == self.broken:
            raise GwsssError(f"number {position} is broken")
        if position == self.interrupting:
            os.kill(os.getpid(), signal.SIGINT)
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


def test_workers_do_not_answer_ctrl_c():
    loader = make_loader(Numbers(interrupting=3), workers=1, batch_size=3)
    assert [batch.tolist() for batch in checked(loader)] == [[0, 1, 2], [3, 4, 5]]


def test_drawing_leaves_the_random_state_alone():
    torch.manual_seed(5)
    state = torch.get_rng_state()
    assert len(list(checked(make_loader(Numbers(), batch_size=2)))) == 3
    assert torch.equal(torch.get_rng_state(), state)
