// Runs a step that PyTorch has compiled ahead of time on blocks of rows at once, each block in a thread of its own.

#include <cstdint>
#include <cstring>
#include <vector>

#include <torch/csrc/inductor/aoti_runtime/interface.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>

namespace {

using Run = decltype(&AOTInductorModelContainerRun);

// Rows of float32 that lie one after the other.
struct Rows {
  float* data;
  int64_t dimensions;
  const int64_t* sizes;    // of the first only the number of dimensions counts
  const int64_t* strides;  // strides[0] is the length of a row
};

bool run_block(Run run, AOTInductorModelContainerHandle step, int64_t first, int64_t count, int num_inputs,
               const Rows* inputs, int num_outputs, const Rows* outputs) {
  std::vector<AtenTensorHandle> given(num_inputs, nullptr), made(num_outputs, nullptr);
  bool ok = true;
  for (int i = 0; i < num_inputs; i++) {
    std::vector<int64_t> sizes(inputs[i].sizes, inputs[i].sizes + inputs[i].dimensions);
    sizes[0] = count;
    float* data = inputs[i].data + first * inputs[i].strides[0];
    ok = ok && aoti_torch_create_tensor_from_blob(data, inputs[i].dimensions, sizes.data(), inputs[i].strides, 0,
                                                  aoti_torch_dtype_float32(), aoti_torch_device_type_cpu(), 0,
                                                  &given[i]) == AOTI_TORCH_SUCCESS;
  }
  // It takes the inputs over, and gives the outputs away.
  ok = ok && run(step, given.data(), num_inputs, made.data(), num_outputs, nullptr, nullptr) == 0;
  for (int i = 0; ok && i < num_outputs; i++) {
    void* data = nullptr;
    ok = aoti_torch_get_data_ptr(made[i], &data) == AOTI_TORCH_SUCCESS;
    if (ok) {
      const int64_t row = outputs[i].strides[0];
      std::memcpy(outputs[i].data + first * row, data, count * row * sizeof(float));
    }
    aoti_torch_delete_tensor_object(made[i]);
  }
  return ok;
}

}  // namespace

// 0 where every block succeeded.
extern "C" int run_by_rows(Run run, AOTInductorModelContainerHandle step, int blocks, int64_t rows, int num_inputs,
                           const Rows* inputs, int num_outputs, const Rows* outputs) {
  if (blocks == 1) {  // outside any parallel region, so that all threads are the step's own
    return !run_block(run, step, 0, rows, num_inputs, inputs, num_outputs, outputs);
  }
  int failed = 0;
#pragma omp parallel for num_threads(blocks) schedule(static, 1) reduction(+ : failed)
  for (int block = 0; block < blocks; block++) {
    const int64_t first = rows * block / blocks;
    const int64_t count = rows * (block + 1) / blocks - first;
    failed += !run_block(run, step, first, count, num_inputs, inputs, num_outputs, outputs);
  }
  return failed;
}
