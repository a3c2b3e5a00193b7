// Several floats at once, by GCC's and Clang's vector types: elementwise functions that a layer's kernels share.

#pragma once

#include <cstdint>
#include <cstring>

template <class To, class From>
inline To copied(const From& from) {
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

template <class Floats>
inline float sum(const Floats& values) {
  float result = 0;
  for (uint64_t k = 0; k < sizeof(Floats) / sizeof(float); k++) result += values[k];
  return result;
}

// 2^whole * e^rest, the latter by its Taylor series: right to the last digits but one.
template <class Floats>
inline Floats exponential(const Floats& x) {
  using Integers = decltype(x < x);
  Floats power = x * 1.44269504f;
  power = power < -126.0f ? Floats{} - 126.0f : power;
  power = power > 126.0f ? Floats{} + 126.0f : power;
  const Floats shifted = power + 12582912.0f;  // 1.5 * 2^23: the last bits are the whole number
  const Integers whole = copied<Integers>(shifted) - 0x4b400000;
  const Floats rest = (power - (shifted - 12582912.0f)) * 0.693147181f;
  const Floats series =
      1 + rest * (1 + rest * (1 / 2.f + rest * (1 / 6.f + rest * (1 / 24.f + rest * (1 / 120.f + rest / 720.f)))));
  return series * copied<Floats>((whole + 127) << 23);
}

template <class Floats>
inline Floats sigmoid(const Floats& x) {
  return 1 / (1 + exponential(-x));
}
