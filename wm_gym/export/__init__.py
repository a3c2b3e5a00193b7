"""Export of world models for other runtimes: TorchScript, ONNX and TensorRT files that were checked against the model.

:mod:`parts` has the parts as modules of plain tensors, :mod:`back_ends` the file formats, :mod:`check` the comparison,
:mod:`latency` the measurement, :mod:`web` the page for a browser, and :mod:`folder` puts them together. Agents bring
their own parts (:mod:`wm_gym.agents.bundles.export`); nothing here knows them.
"""
