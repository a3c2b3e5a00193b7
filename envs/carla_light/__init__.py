"""A light CARLA server for laptops: the real client drives on it, over CARLA's own protocol, without a GPU.

What it is and is not is told in ``docs/carla_light.md``.
"""
