"""How pictures travel to a page."""

import cv2
import numpy as np

from wm_gym.agents.web.pictures import decode_pictures, encode_pictures


def test_small_pictures_arrive_without_loss_and_large_ones_small(rng):
    small = rng.integers(0, 256, (64, 48, 3), np.uint8)
    large = np.full((256, 256, 3), (10, 200, 90), np.uint8)
    header, pictures = decode_pictures(encode_pictures({"number": 3}, {"dream": small, "simulator": large}))
    assert header["number"] == 3
    assert [listed["type"] for listed in header["pictures"]] == ["image/png", "image/jpeg"]

    def read(name):
        return cv2.imdecode(np.frombuffer(pictures[name], np.uint8), cv2.IMREAD_COLOR)[..., ::-1]

    np.testing.assert_array_equal(read("dream"), small)
    np.testing.assert_allclose(read("simulator").astype(int), large, atol=6)
