import threading

import pytest
import torch

from privimage.threads import Workers


def test_results_come_in_order_from_several_threads_with_one_torch_thread_each():
    workers = Workers(2)
    both = threading.Barrier(2, timeout=10)

    def work(piece):
        both.wait()
        return piece, torch.get_num_threads(), threading.get_ident()

    results = workers.map(work, range(6))
    workers.close()
    assert [piece for piece, _, _ in results] == list(range(6))
    assert {threads for _, threads, _ in results} == {1}
    assert len({identity for _, _, identity in results}) == 2


def test_an_error_in_a_worker_is_raised():
    workers = Workers(2)
    with pytest.raises(ZeroDivisionError):
        workers.map(lambda piece: 1 // piece, [1, 0, 1])
    workers.close()
