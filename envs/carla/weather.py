"""CARLA's weather: its presets by name, and the parameters of any other."""

from __future__ import annotations

WEATHER_NAMES = (
    "ClearNoon",
    "CloudyNoon",
    "WetNoon",
    "WetCloudyNoon",
    "SoftRainNoon",
    "MidRainyNoon",
    "HardRainNoon",
    "ClearSunset",
    "CloudySunset",
    "WetSunset",
    "WetCloudySunset",
    "SoftRainSunset",
    "MidRainSunset",
    "HardRainSunset",
    "ClearNight",
    "CloudyNight",
    "WetNight",
    "WetCloudyNight",
    "SoftRainNight",
    "MidRainyNight",
    "HardRainNight",
    "DustStorm",
)
"""Class attributes of ``carla.WeatherParameters`` that are presets, but for ``Default``."""

WEATHER_PARAMETERS = (
    "cloudiness",
    "precipitation",
    "precipitation_deposits",
    "wind_intensity",
    "sun_azimuth_angle",
    "sun_altitude_angle",
    "fog_density",
    "fog_distance",
    "fog_falloff",
    "wetness",
    "scattering_intensity",
    "mie_scattering_scale",
    "rayleigh_scattering_scale",
    "dust_storm",
)
"""Attributes of ``carla.WeatherParameters``: numbers, those that are not given at CARLA's defaults."""

CUSTOM = "custom"
"""Name of a weather that is given by its parameters."""
