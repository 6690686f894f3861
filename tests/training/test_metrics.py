import pytest
import torch

from convoy.training.metrics import constant_velocity_trajectory, displacement_errors, ego_velocity


def test_displacement_errors_of_known_offsets():
    target = torch.zeros(2, 3, 3)
    trajectory = torch.zeros(2, 3, 3)
    trajectory[0, :, :2] = torch.tensor([3.0, 4.0])
    trajectory[1, 2, 0] = 6.0
    trajectory[:, :, 2] = 9.0  # heading is not a displacement
    ade, fde = displacement_errors(trajectory, target)
    assert ade.tolist() == [5.0, 2.0] and fde.tolist() == [5.0, 6.0]


def test_errors_are_accumulated_in_float64_whatever_goes_in():
    trajectory = torch.full((1, 2, 2), 1.0, dtype=torch.float16)
    target = torch.full((1, 2, 3), 1.0 + 2.0**-30, dtype=torch.float64)
    ade, fde = displacement_errors(trajectory, target)
    assert ade.dtype == fde.dtype == torch.float64
    assert ade.item() == pytest.approx(2.0**-30 * 2**0.5)


def test_velocity_is_found_in_both_layouts_of_navsim():
    status = torch.tensor([[0, 1, 0, 0, 7.0, 0.5, -1.0, 0.1]])
    ego_status = torch.tensor([[7.0, 0.5, -1.0, 0.1, 0, 1, 0, 0]])
    assert ego_velocity({"status_feature": status}).tolist() == [[7.0, 0.5]]
    assert ego_velocity({"ego_status": ego_status}).tolist() == [[7.0, 0.5]]
    assert ego_velocity({"status_feature": [status, status + 1]}).tolist() == [[7.0, 0.5]]  # GTRS
    assert ego_velocity({"status_feature": []}) is None
    assert ego_velocity({"camera_feature": status}) is None


def test_constant_velocity_trajectory():
    trajectory = constant_velocity_trajectory(torch.tensor([[10.0, -1.0], [0.0, 0.0]]), poses=8)
    assert trajectory.shape == (2, 8, 3)
    assert trajectory[0, 0].tolist() == [5.0, -0.5, 0.0]
    assert trajectory[0, 7].tolist() == [40.0, -4.0, 0.0]
    assert not trajectory[1].any()
