import pytest
import torch
from torch import nn
from torch.optim import AdamW
from torch.optim import Muon as TorchsMuon

from stream_learner.learning.muon import Muon, matrices_of, orthogonal


@pytest.mark.parametrize("shape", [(20, 27), (160, 1440), (160, 80), (7, 7), (1, 9)])
def test_orthogonal_keeps_the_directions_and_makes_their_sizes_alike(shape):
    torch.manual_seed(0)
    matrix = torch.randn(shape)
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    sizes = (u.T @ orthogonal(matrix) @ vh.T).diagonal()
    large = s > 0.05 * s.norm()  # the smallest have not all arrived after five iterations
    assert large.any()
    assert sizes[large].min() > 0.65
    assert sizes.max() < 1.25
    off = u.T @ orthogonal(matrix) @ vh.T - sizes.diag()
    assert off.abs().max() < 1e-3


def test_a_matrix_of_zeros_stays_where_it_is():
    assert torch.equal(orthogonal(torch.zeros(3, 5)), torch.zeros(3, 5))


@pytest.mark.parametrize("shape", [(20, 60), (60, 20)])
def test_matrices_move_as_by_torchs_own_muon_and_the_others_as_by_adamw(shape):
    torch.manual_seed(0)
    matrix, bias = nn.Parameter(torch.randn(shape)), nn.Parameter(torch.randn(9))
    their_matrix, their_bias = (nn.Parameter(p.detach().clone()) for p in (matrix, bias))
    ours = Muon([matrix, bias], [matrix], lr=0.01, momentum=0.9, weight_decay=0.1)
    theirs = [
        TorchsMuon([their_matrix], lr=0.01, momentum=0.9, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        AdamW([their_bias], lr=0.01, weight_decay=0.1, fused=True),
    ]
    for _ in range(5):
        before = matrix.detach().clone()
        for mine, their in ((matrix, their_matrix), (bias, their_bias)):
            mine.grad = torch.randn_like(mine)
            their.grad = mine.grad.clone()
        for optimizer in (ours, *theirs):
            optimizer.step()
        moved = (matrix - before).norm()
        assert (matrix - their_matrix).norm() < 0.05 * moved  # torch iterates in bfloat16
        assert torch.equal(bias, their_bias)
        with torch.no_grad():
            their_matrix.copy_(matrix)


def test_a_kernel_moves_as_the_matrix_of_its_outputs():
    torch.manual_seed(0)
    kernel = nn.Parameter(torch.randn(8, 4, 3, 3).to(memory_format=torch.channels_last))
    matrix = nn.Parameter(kernel.detach().flatten(1).clone())
    kernel.grad = torch.randn(8, 4, 3, 3).to(memory_format=torch.channels_last)
    matrix.grad = kernel.grad.flatten(1).clone()
    for parameter in (kernel, matrix):
        Muon([parameter], [parameter], lr=0.01, momentum=0.9, weight_decay=0.1).step()
    assert torch.allclose(kernel.flatten(1), matrix, atol=1e-6)
    assert kernel.is_contiguous(memory_format=torch.channels_last)


def test_a_parameter_without_a_gradient_stays_where_it_is():
    matrix = nn.Parameter(torch.ones(2, 3))
    Muon([matrix], [matrix], lr=0.01, momentum=0.9, weight_decay=0.1).step()
    assert torch.equal(matrix, torch.ones(2, 3))


def test_what_is_a_matrix():
    dense, first, grouped, recurrent = nn.Linear(3, 4), nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3, groups=8), nn.GRU(3, 4)
    cell = nn.GRUCell(3, 4)
    body = nn.Sequential(first, nn.BatchNorm2d(8), grouped, dense, nn.Embedding(5, 3), recurrent, cell)
    expected = (
        first.weight,
        dense.weight,
        recurrent.weight_ih_l0,
        recurrent.weight_hh_l0,
        cell.weight_ih,
        cell.weight_hh,
    )
    assert [id(matrix) for matrix in matrices_of(body)] == [id(parameter) for parameter in expected]


def test_a_table_that_a_module_has_by_itself_is_none():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.position_bias_table = nn.Parameter(torch.zeros(25, 4))
            self.attention = nn.MultiheadAttention(4, 2)

    body = Attention()
    expected = body.attention.in_proj_weight, body.attention.out_proj.weight
    assert [id(matrix) for matrix in matrices_of(body)] == [id(parameter) for parameter in expected]


def test_a_step_of_a_lower_share_moves_matrices_less():
    moved = []
    for share in (1.0, 0.1):
        matrix = nn.Parameter(torch.zeros(2, 3))
        matrix.grad = torch.tensor([[1.0, 0.0, 2.0], [0.0, 3.0, 0.0]])
        optimizer = Muon([matrix], [matrix], lr=0.01, momentum=0.9, weight_decay=0.0)
        optimizer.share = share
        optimizer.step()
        moved.append(matrix.detach())
    assert torch.allclose(moved[1], 0.1 * moved[0])
