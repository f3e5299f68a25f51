"""What a model costs: work per node, device profiles, joules with intervals."""

from joulec.energy.bind import bind, symbols
from joulec.energy.estimate import Change, Energy, Estimate, NodeEnergy, compare
from joulec.energy.kernels import effective_kernels
from joulec.energy.model import EnergyModel
from joulec.energy.profile import DeviceProfile, load_profile, profile_names, user_folder, user_profiles

__all__ = [
    "Change", "DeviceProfile", "Energy", "EnergyModel", "Estimate", "NodeEnergy", "bind", "compare",
    "effective_kernels", "load_profile", "profile_names", "symbols", "user_folder", "user_profiles",
]  # fmt: skip
