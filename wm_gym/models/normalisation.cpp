// Group normalisation in groups of eight channels, a sum with a shortcut where there is one, and SiLU, forward and
// backward, of bfloat16 maps (frames, cells, channels). One frame after the other, so that its map stays in the cache
// between the passes over it.

#include <cmath>
#include <cstdint>
#include <cstring>

#include "vectors.h"

namespace {

using bf16 = uint16_t;
constexpr int64_t GROUP = 8;

// One cell of a group.
typedef float Floats __attribute__((vector_size(4 * GROUP)));
typedef uint32_t Bits __attribute__((vector_size(4 * GROUP)));
typedef bf16 Halves __attribute__((vector_size(2 * GROUP)));

inline Floats load(const float* from) { return copied<Floats>(*from); }

inline Floats load(const bf16* from) {
  return copied<Floats>(__builtin_convertvector(copied<Halves>(*from), Bits) << 16);
}

inline void store(const Floats& value, float* to) { std::memcpy(to, &value, sizeof(value)); }

inline void store(const Floats& value, bf16* to) {  // to the nearest, ties to even
  const Bits bits = copied<Bits>(value);
  Bits high = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  high = value == value ? high : (bits >> 16) | 0x40;  // what is no number stays none
  const Halves halves = __builtin_convertvector(high, Halves);
  std::memcpy(to, &halves, sizeof(halves));
}

}  // namespace

// `moments` gets the means of all frames and groups, then one over their standard deviations.
extern "C" void norm_silu(int64_t threads, int64_t frames, int64_t cells, int64_t channels, float eps, const bf16* x,
                          const bf16* shortcut, const float* weight, const float* bias, bf16* y, float* moments) {
  const int64_t groups = channels / GROUP, map = cells * channels;
  const float count = static_cast<float>(cells * GROUP);
#pragma omp parallel for num_threads(threads)
  for (int64_t frame = 0; frame < frames; frame++) {
    for (int64_t group = 0; group < groups; group++) {
      const int64_t first = frame * map + group * GROUP, end = first + map;
      // About the first cell, so that a mean far from zero costs no digits.
      const float centre = load(x + first)[0];
      Floats values{}, squares{};
      for (int64_t at = first; at < end; at += channels) {
        const Floats value = load(x + at) - centre;
        values += value;
        squares += value * value;
      }
      const float offset = sum(values) / count;
      const float mean = centre + offset, inverse = 1 / std::sqrt(sum(squares) / count - offset * offset + eps);
      moments[frame * groups + group] = mean;
      moments[(frames + frame) * groups + group] = inverse;

      const Floats w = load(weight + group * GROUP) * inverse, b = load(bias + group * GROUP) - mean * w;
      for (int64_t at = first; at < end; at += channels) {
        Floats z = load(x + at) * w + b;
        if (shortcut) z += load(shortcut + at);
        store(z * sigmoid(z), y + at);
      }
    }
  }
}

// `of_shortcut` is a map of its own, or the same as `of_x`. `sums` (frames, 2, channels) gets the gradients of bias and
// weight by frame, so that their sums do not depend on the number of threads.
extern "C" void norm_silu_backward(int64_t threads, int64_t frames, int64_t cells, int64_t channels, const bf16* x,
                                   const bf16* shortcut, const float* weight, const float* bias, const float* moments,
                                   const bf16* of_y, bf16* of_x, bf16* of_shortcut, float* sums) {
  const int64_t groups = channels / GROUP, map = cells * channels;
  const float count = static_cast<float>(cells * GROUP);
#pragma omp parallel for num_threads(threads)
  for (int64_t frame = 0; frame < frames; frame++) {
    for (int64_t group = 0; group < groups; group++) {
      const int64_t first = frame * map + group * GROUP, end = first + map;
      const float mean = moments[frame * groups + group], inverse = moments[(frames + frame) * groups + group];
      const Floats w = load(weight + group * GROUP) * inverse, b = load(bias + group * GROUP) - mean * w;
      Floats of_bias{}, of_weight{};
      for (int64_t at = first; at < end; at += channels) {
        const Floats value = load(x + at);
        Floats z = value * w + b;
        if (shortcut) z += load(shortcut + at);
        const Floats gate = sigmoid(z);
        const Floats of_z = load(of_y + at) * gate * (1 + z * (1 - gate));
        store(of_z, of_shortcut + at);
        of_bias += of_z;
        of_weight += of_z * (value - mean);
      }
      of_weight *= inverse;
      store(of_bias, sums + frame * 2 * channels + group * GROUP);
      store(of_weight, sums + (frame * 2 + 1) * channels + group * GROUP);

      // inverse * (of_normalised - its mean - normalised * mean(of_normalised * normalised))
      const Floats by = load(weight + group * GROUP);
      const float slope = -sum(by * of_weight) / count * inverse * inverse;
      const float rest = -sum(by * of_bias) / count * inverse - slope * mean;
      for (int64_t at = first; at < end; at += channels) {
        store(load(of_shortcut + at) * w + load(x + at) * slope + rest, of_x + at);
      }
    }
  }
}
