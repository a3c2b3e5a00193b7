// The steps of a recurrent state-space model through clips whose frames are all observed, forward and backward, in
// float32. Each thread takes some of the clips from their first step to their last and waits for nobody.
//
// One step, where Wx are matrices, LN layer normalisation, and the terms that need no state were made before:
//   u = silu(LN1(before_input + Wz z))      r, c, g = LN2(Wg [u, h])
//   c = tanh(sigmoid(r) c)                  h' = sigmoid(g - 1) c + (1 - sigmoid(g - 1)) h
//   v = silu(LN3(before_posterior + Wh h'))  l = Wp v + bias
//   p = (1 - mixed) softmax(l) + mixed / classes, in groups; z' is drawn from p, and its gradient is that of p.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "../vectors.h"

namespace {

constexpr int64_t LANES = 16, PANEL = 2 * LANES;
#ifdef __AVX512F__
constexpr int64_t ROWS = 12;  // their sums fill the registers
#else
constexpr int64_t ROWS = 3;
#endif
constexpr float EPSILON = 1e-5f;

typedef float Floats __attribute__((vector_size(4 * LANES)));

inline Floats load(const float* from) { return copied<Floats>(*reinterpret_cast<const float(*)[LANES]>(from)); }

inline void store(const Floats& value, float* to) { std::memcpy(to, &value, sizeof(value)); }

// y (COUNT, PANEL) = or += x (COUNT, depth) times one panel (depth, PANEL) of a matrix.
template <int64_t COUNT>
inline void panel_product(int64_t depth, const float* x, int64_t x_stride, const float* panel, float* y,
                          int64_t y_stride, bool adds) {
  Floats sums[COUNT][2];
  for (int64_t row = 0; row < COUNT; row++) {
    for (int64_t half = 0; half < 2; half++) {
      sums[row][half] = adds ? load(y + row * y_stride + half * LANES) : Floats{};
    }
  }
  for (int64_t k = 0; k < depth; k++) {
    const Floats low = load(panel + k * PANEL), high = load(panel + k * PANEL + LANES);
    for (int64_t row = 0; row < COUNT; row++) {
      const float factor = x[row * x_stride + k];
      sums[row][0] += factor * low;
      sums[row][1] += factor * high;
    }
  }
  for (int64_t row = 0; row < COUNT; row++) {
    for (int64_t half = 0; half < 2; half++) store(sums[row][half], y + row * y_stride + half * LANES);
  }
}

// Of `rows` rows, at most COUNT.
template <int64_t COUNT>
inline void rows_product(int64_t rows, int64_t depth, const float* x, int64_t x_stride, const float* panel, float* y,
                         int64_t y_stride, bool adds) {
  if constexpr (COUNT > 1) {
    if (rows < COUNT) return rows_product<COUNT - 1>(rows, depth, x, x_stride, panel, y, y_stride, adds);
  }
  panel_product<COUNT>(depth, x, x_stride, panel, y, y_stride, adds);
}

// y (rows, width) = or += x (rows, depth) times a matrix, given as panels (width / PANEL, depth, PANEL).
void product(int64_t rows, int64_t depth, int64_t width, const float* x, int64_t x_stride, const float* panels,
             float* y, int64_t y_stride, bool adds) {
  for (int64_t column = 0; column < width; column += PANEL, panels += depth * PANEL) {
    for (int64_t row = 0; row < rows; row += ROWS) {
      rows_product<ROWS>(std::min(ROWS, rows - row), depth, x + row * x_stride, x_stride, panels,
                         y + row * y_stride + column, y_stride, adds);
    }
  }
}

// In place: x becomes normalised, without weight and bias. Returns one over its standard deviation.
float normalise(int64_t width, float* x) {
  Floats values{};
  for (int64_t k = 0; k < width; k += LANES) values += load(x + k);
  const float mean = sum(values) / width;
  Floats squares{};
  for (int64_t k = 0; k < width; k += LANES) {
    const Floats difference = load(x + k) - mean;
    squares += difference * difference;
  }
  const float inverse = 1 / std::sqrt(sum(squares) / width + EPSILON);
  for (int64_t k = 0; k < width; k += LANES) store((load(x + k) - mean) * inverse, x + k);
  return inverse;
}

// `gradient` of weight * x + bias becomes that of what x was before it was normalised; the sums get the parameters'.
void normalise_backward(int64_t width, const float* x, float inverse, const float* weight, float* gradient,
                        float* of_weight, float* of_bias) {
  Floats sums{}, products{};
  for (int64_t k = 0; k < width; k += LANES) {
    const Floats given = load(gradient + k), normalised = load(x + k), by = given * load(weight + k);
    store(load(of_weight + k) + given * normalised, of_weight + k);
    store(load(of_bias + k) + given, of_bias + k);
    sums += by;
    products += by * normalised;
    store(by, gradient + k);
  }
  const float mean = sum(sums) / width, slope = sum(products) / width;
  for (int64_t k = 0; k < width; k += LANES) {
    store(inverse * (load(gradient + k) - mean - load(x + k) * slope), gradient + k);
  }
}

void silu(int64_t width, const float* x, const float* weight, const float* bias, float* y) {
  for (int64_t k = 0; k < width; k += LANES) {
    const Floats value = load(x + k) * load(weight + k) + load(bias + k);
    store(value * sigmoid(value), y + k);
  }
}

void silu_backward(int64_t width, const float* x, const float* weight, const float* bias, float* gradient) {
  for (int64_t k = 0; k < width; k += LANES) {
    const Floats value = load(x + k) * load(weight + k) + load(bias + k), gate = sigmoid(value);
    store(load(gradient + k) * gate * (1 + value * (1 - gate)), gradient + k);
  }
}

// The gates of one clip: what makes h' of h, from normalised values (3, hidden).
struct Gates {
  Floats reset, raw, candidate, update;
  Gates(const float* x, const float* weight, const float* bias, int64_t hidden, int64_t k) {
    Floats given[3];
    for (int64_t part = 0; part < 3; part++) {
      const int64_t at = part * hidden + k;
      given[part] = load(x + at) * load(weight + at) + load(bias + at);
    }
    reset = sigmoid(given[0]);
    raw = given[1];
    candidate = 2 * sigmoid(2 * reset * raw) - 1;  // tanh
    update = sigmoid(given[2] - 1);
  }
};

// Logits of one clip become probabilities.
void to_probabilities(int64_t groups, int64_t classes, float mixed, float* x) {
  const int64_t width = groups * classes;
  for (int64_t first = 0; first < width; first += classes) {
    float highest = x[first];
    for (int64_t k = 1; k < classes; k++) highest = std::max(highest, x[first + k]);
    for (int64_t k = 0; k < classes; k++) x[first + k] -= highest;
  }
  for (int64_t k = 0; k < width; k += LANES) store(exponential(load(x + k)), x + k);
  for (int64_t first = 0; first < width; first += classes) {
    float total = 0;
    for (int64_t k = 0; k < classes; k++) total += x[first + k];
    const float factor = (1 - mixed) / total;
    for (int64_t k = 0; k < classes; k++) x[first + k] = x[first + k] * factor + mixed / classes;
  }
}

// Gradients of probabilities become those of their logits.
void to_probabilities_backward(int64_t groups, int64_t classes, float mixed, const float* probabilities,
                               float* gradient) {
  for (int64_t first = 0; first < groups * classes; first += classes) {
    float mean = 0;
    for (int64_t k = first; k < first + classes; k++) {
      mean += gradient[k] * (probabilities[k] - mixed / classes);  // softmax times (1 - mixed)
    }
    mean /= 1 - mixed;
    for (int64_t k = first; k < first + classes; k++) {
      gradient[k] = (gradient[k] - mean) * (probabilities[k] - mixed / classes);
    }
  }
}

// The place of the class that is drawn.
int64_t drawn(int64_t classes, const float* probabilities, float uniform) {
  float bound = 0;
  int64_t place = 0;
  for (int64_t k = 0; k < classes - 1; k++) {
    bound += probabilities[k];
    place += bound <= uniform;
  }
  return place;
}

struct Sizes {
  int64_t threads, steps, clips, hidden, groups, classes;
  float mixed;
};

struct Block {
  int64_t first, rows;
  Block(const Sizes& sizes, int64_t thread) {
    first = sizes.clips * thread / sizes.threads;
    rows = sizes.clips * (thread + 1) / sizes.threads - first;
  }
};

}  // namespace

// All but the parameters and `start` (clips, hidden) are (steps, clips, ...). Steps that have a past are one fewer: of
// `before_input`, and of `normalised_input`, `inputs` and `normalised_gates`, which the way back needs. `inverses`
// (steps, clips, 3) are one over the standard deviations. `drawn_input` (groups * classes, hidden) is Wz transposed.
extern "C" void filter(const Sizes* sizes, const float* start, const float* before_input,
                       const float* before_posterior, const float* noise, const float* drawn_input,
                       const float* gates, const float* posterior, const float* logits, const float* logits_bias,
                       const float* weight_input, const float* bias_input, const float* weight_gates,
                       const float* bias_gates, const float* weight_posterior, const float* bias_posterior,
                       float* hiddens, float* probabilities, float* draws, float* normalised_input, float* inputs,
                       float* normalised_gates, float* normalised_posterior, float* posteriors, float* inverses) {
  const int64_t hidden = sizes->hidden, classes = sizes->classes, stochastic = sizes->groups * classes;
#pragma omp parallel for num_threads(sizes->threads)
  for (int64_t thread = 0; thread < sizes->threads; thread++) {
    const Block block(*sizes, thread);
    std::vector<float> joined(block.rows * 2 * hidden);
    std::vector<int64_t> places(block.rows * sizes->groups);
    for (int64_t step = 0; step < sizes->steps; step++) {
      const int64_t first = step * sizes->clips + block.first, past = first - sizes->clips;
      float* now = hiddens + first * hidden;
      if (step == 0) {
        std::memcpy(now, start + block.first * hidden, sizeof(float) * block.rows * hidden);
      } else {
        for (int64_t row = 0; row < block.rows; row++) {
          const int64_t at = (past + row) * hidden;
          float* normalised = normalised_input + at;
          std::memcpy(normalised, before_input + at, sizeof(float) * hidden);
          for (int64_t group = 0; group < sizes->groups; group++) {
            const float* added = drawn_input + places[row * sizes->groups + group] * hidden;
            for (int64_t k = 0; k < hidden; k += LANES) store(load(normalised + k) + load(added + k), normalised + k);
          }
          inverses[(first + row) * 3] = normalise(hidden, normalised);
          silu(hidden, normalised, weight_input, bias_input, inputs + at);
          std::memcpy(&joined[row * 2 * hidden], inputs + at, sizeof(float) * hidden);
          std::memcpy(&joined[row * 2 * hidden + hidden], hiddens + at, sizeof(float) * hidden);
        }
        float* normalised = normalised_gates + past * 3 * hidden;
        product(block.rows, 2 * hidden, 3 * hidden, joined.data(), 2 * hidden, gates, normalised, 3 * hidden, false);
        for (int64_t row = 0; row < block.rows; row++, normalised += 3 * hidden) {
          inverses[(first + row) * 3 + 1] = normalise(3 * hidden, normalised);
          for (int64_t k = 0; k < hidden; k += LANES) {
            const Gates gate(normalised, weight_gates, bias_gates, hidden, k);
            const Floats before = load(hiddens + (past + row) * hidden + k);
            store(gate.update * gate.candidate + (1 - gate.update) * before, now + row * hidden + k);
          }
        }
      }
      float* normalised = normalised_posterior + first * hidden;
      std::memcpy(normalised, before_posterior + first * hidden, sizeof(float) * block.rows * hidden);
      product(block.rows, hidden, hidden, now, hidden, posterior, normalised, hidden, true);
      for (int64_t row = 0; row < block.rows; row++, normalised += hidden) {
        inverses[(first + row) * 3 + 2] = normalise(hidden, normalised);
        silu(hidden, normalised, weight_posterior, bias_posterior, posteriors + (first + row) * hidden);
        std::memcpy(probabilities + (first + row) * stochastic, logits_bias, sizeof(float) * stochastic);
      }
      product(block.rows, hidden, stochastic, posteriors + first * hidden, hidden, logits,
              probabilities + first * stochastic, stochastic, true);
      std::fill_n(draws + first * stochastic, block.rows * stochastic, 0.0f);
      for (int64_t row = 0; row < block.rows; row++) {
        float* of_clip = probabilities + (first + row) * stochastic;
        to_probabilities(sizes->groups, classes, sizes->mixed, of_clip);
        for (int64_t group = 0; group < sizes->groups; group++) {
          const float uniform = noise[(first + row) * sizes->groups + group];
          const int64_t place = group * classes + drawn(classes, of_clip + group * classes, uniform);
          places[row * sizes->groups + group] = place;
          draws[(first + row) * stochastic + place] = 1 + (of_clip[place] - of_clip[place]);  // what is no number shows
        }
      }
    }
  }
}

// Gradients `of_hiddens`, `of_probabilities` and `of_draws` are given, and used up: they become those of h, of the
// logits, and nothing. The `of_` others are written. `sums` (clips, 2, 5 * hidden) begin at zero and get the gradients
// of the weights and biases of the three normalisations by clip, so that they do not depend on the number of threads.
// Matrices are as above, but for the products with their transposes.
extern "C" void filter_backward(const Sizes* sizes, const float* hiddens, const float* probabilities,
                                const float* drawn_input, const float* gates, const float* posterior,
                                const float* logits, const float* weight_input, const float* bias_input,
                                const float* weight_gates, const float* bias_gates, const float* weight_posterior,
                                const float* bias_posterior, const float* normalised_input,
                                const float* normalised_gates, const float* normalised_posterior,
                                const float* inverses, float* of_hiddens, float* of_probabilities, float* of_draws,
                                float* of_input, float* of_gates, float* of_posterior, float* sums) {
  const int64_t hidden = sizes->hidden, stochastic = sizes->groups * sizes->classes;
#pragma omp parallel for num_threads(sizes->threads)
  for (int64_t thread = 0; thread < sizes->threads; thread++) {
    const Block block(*sizes, thread);
    std::vector<float> joined(block.rows * 2 * hidden);
    for (int64_t step = sizes->steps - 1; step >= 0; step--) {
      const int64_t first = step * sizes->clips + block.first, past = first - sizes->clips;
      float *of_now = of_hiddens + first * hidden, *of_logits = of_probabilities + first * stochastic;
      for (int64_t row = 0; row < block.rows; row++) {
        const int64_t at = (first + row) * stochastic;
        for (int64_t k = 0; k < stochastic; k += LANES) {
          store(load(of_probabilities + at + k) + load(of_draws + at + k), of_probabilities + at + k);
        }
        to_probabilities_backward(sizes->groups, sizes->classes, sizes->mixed, probabilities + at,
                                  of_probabilities + at);
      }
      float* of_before = of_posterior + first * hidden;
      product(block.rows, stochastic, hidden, of_logits, stochastic, logits, of_before, hidden, false);
      for (int64_t row = 0; row < block.rows; row++) {
        const float* normalised = normalised_posterior + (first + row) * hidden;
        float* gradient = of_before + row * hidden;
        float* of_parameters = sums + (block.first + row) * 10 * hidden;
        silu_backward(hidden, normalised, weight_posterior, bias_posterior, gradient);
        normalise_backward(hidden, normalised, inverses[(first + row) * 3 + 2], weight_posterior, gradient,
                           of_parameters + 4 * hidden, of_parameters + 9 * hidden);
      }
      product(block.rows, hidden, hidden, of_before, hidden, posterior, of_now, hidden, true);
      if (step == 0) continue;

      for (int64_t row = 0; row < block.rows; row++) {
        const float* normalised = normalised_gates + (past + row) * 3 * hidden;
        float* gradient = of_gates + (past + row) * 3 * hidden;
        float* of_parameters = sums + (block.first + row) * 10 * hidden;
        for (int64_t k = 0; k < hidden; k += LANES) {
          const Gates gate(normalised, weight_gates, bias_gates, hidden, k);
          const int64_t at = (past + row) * hidden + k;
          const Floats given = load(of_now + row * hidden + k), before = load(hiddens + at);
          const Floats of_candidate = given * gate.update * (1 - gate.candidate * gate.candidate);
          store(of_candidate * gate.raw * gate.reset * (1 - gate.reset), gradient + k);
          store(of_candidate * gate.reset, gradient + hidden + k);
          store(given * (gate.candidate - before) * gate.update * (1 - gate.update), gradient + 2 * hidden + k);
          store(load(of_hiddens + at) + given * (1 - gate.update), of_hiddens + at);
        }
        normalise_backward(3 * hidden, normalised, inverses[(first + row) * 3 + 1], weight_gates, gradient,
                           of_parameters + hidden, of_parameters + 6 * hidden);
      }
      product(block.rows, 3 * hidden, 2 * hidden, of_gates + past * 3 * hidden, 3 * hidden, gates, joined.data(),
              2 * hidden, false);
      for (int64_t row = 0; row < block.rows; row++) {
        const int64_t at = (past + row) * hidden;
        const float *of_input_row = &joined[row * 2 * hidden], *of_hidden_row = of_input_row + hidden;
        float* of_parameters = sums + (block.first + row) * 10 * hidden;
        for (int64_t k = 0; k < hidden; k += LANES) {
          store(load(of_hiddens + at + k) + load(of_hidden_row + k), of_hiddens + at + k);
        }
        std::memcpy(of_input + at, of_input_row, sizeof(float) * hidden);
        silu_backward(hidden, normalised_input + at, weight_input, bias_input, of_input + at);
        normalise_backward(hidden, normalised_input + at, inverses[(first + row) * 3], weight_input, of_input + at,
                           of_parameters, of_parameters + 5 * hidden);
      }
      product(block.rows, hidden, stochastic, of_input + past * hidden, hidden, drawn_input,
              of_draws + past * stochastic, stochastic, true);
    }
  }
}
