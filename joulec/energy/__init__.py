"""What a model costs: work per node, device profiles, joules with intervals."""

from joulec.energy.bind import bind, symbols
from joulec.energy.calibrate import Calibrated, calibrate_cpu, calibrated_profile, profile_for, write_profile
from joulec.energy.estimate import Change, Energy, Estimate, NodeEnergy, compare
from joulec.energy.kernels import effective_kernels
from joulec.energy.model import EnergyModel
from joulec.energy.profile import DeviceProfile, load_profile, profile_names, user_folder, user_profiles

__all__ = [
    "Calibrated", "Change", "DeviceProfile", "Energy", "EnergyModel", "Estimate", "NodeEnergy", "bind",
    "calibrate_cpu", "calibrated_profile", "compare", "effective_kernels", "load_profile", "profile_for",
    "profile_names", "symbols", "user_folder", "user_profiles", "write_profile",
]  # fmt: skip
