// Dense arithmetic on small blocks that stay in cache: products, packing, exp. Written once over ATen's vector types.
//
// Why not the BLAS that torch links: it packs its operands in every call, which for blocks this small costs as much as
// the product, and on some processors it leaves half of the vector unit unused.
#pragma once

#include <ATen/cpu/vec/functional.h>
#include <ATen/cpu/vec/vec.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>

namespace headway {

using at::vec::Vectorized;

template <typename T>
constexpr int64_t LANES = Vectorized<T>::size();

// Registers of a block of a product: ROWS x GROUP vectors of sums, GROUP of one operand, one of the other.
constexpr int ROWS = 6;
#if defined(CPU_CAPABILITY_AVX512) || defined(__aarch64__)
constexpr int GROUP = 4;  // 32 vector registers
#else
constexpr int GROUP = 2;  // 16
#endif

template <typename T>
constexpr int64_t PANEL = GROUP * LANES<T>;

// Up to this many queries, as in decoding, use the keys without packing.
constexpr int64_t FEW = 4;

inline int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

// Memory for one thread, divided into pieces aligned to cache lines.
class Scratch {
 public:
  explicit Scratch(size_t bytes) : room_(round_up(bytes, 64)) {
    start_ = static_cast<char*>(std::aligned_alloc(64, std::max<size_t>(room_, 64)));
    if (start_ == nullptr) throw std::bad_alloc();
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() { std::free(start_); }
  template <typename T>
  T* take(int64_t count) {
    char* piece = start_ + used_;
    used_ += round_up(count * sizeof(T), 64);
    if (used_ > room_) throw std::bad_alloc();
    return reinterpret_cast<T*>(piece);
  }
  void clear() { used_ = 0; }

 private:
  size_t room_, used_ = 0;
  char* start_;
};

// exp(x) for x <= 0 or slightly above, to 1 ulp; 0 below -87.7, where float32 has no normal numbers.
inline Vectorized<float> exp_negative(Vectorized<float> x) {
  using V = Vectorized<float>;
  using I = Vectorized<int32_t>;
  x = at::vec::clamp_min(x, V(-88.1f));  // there 2^n below has all its bits zero: an exact 0
  const V shifter(12582912.0f);          // 1.5 * 2^23: the sum's last bits are the nearest integer
  const V shifted = at::vec::fmadd(x, V(1.44269504088896341f), shifter);
  const V n = shifted - shifter;
  V r = at::vec::fmadd(n, V(-0.693359375f), x);  // ln 2 in two parts, so that r is exact
  r = at::vec::fmadd(n, V(2.12194440e-4f), r);
  V p = at::vec::fmadd(V(1.9875691500e-4f), r, V(1.3981999507e-3f));
  p = at::vec::fmadd(p, r, V(8.3334519073e-3f));
  p = at::vec::fmadd(p, r, V(4.1665795894e-2f));
  p = at::vec::fmadd(p, r, V(1.6666665459e-1f));
  p = at::vec::fmadd(p, r, V(5.0000001201e-1f));
  p = at::vec::fmadd(p, r * r, r) + V(1.0f);
  const I bits = at::vec::cast<int32_t, float>(shifted);
  const I power = (bits << I(23)) + I(127 << 23);
  return p * at::vec::cast<float, int32_t>(power);
}

inline Vectorized<double> exp_negative(Vectorized<double> x) {
  constexpr int64_t lanes = LANES<double>;
  double value[lanes];
  x.store(value);
  for (int64_t i = 0; i < lanes; ++i) value[i] = std::exp(value[i]);
  return Vectorized<double>::loadu(value);
}

// tanh(x) to about 1 ulp.
inline Vectorized<float> tanh_of(Vectorized<float> x) {
  using V = Vectorized<float>;
  const V one(1.0f), z = x * x, size = x.abs();
  V p = at::vec::fmadd(V(-5.70498872745e-3f), z, V(2.06390887954e-2f));
  p = at::vec::fmadd(p, z, V(-5.37397155531e-2f));
  p = at::vec::fmadd(p, z, V(1.33314422036e-1f));
  p = at::vec::fmadd(p, z, V(-3.33332819422e-1f));
  const V near = at::vec::fmadd(x * z, p, x), e = exp_negative(V(-2.0f) * size);
  const V far = ((one - e) / (one + e)).copysign(x);
  return V::blendv(far, near, size < V(0.625f));
}

inline Vectorized<double> tanh_of(Vectorized<double> x) {
  constexpr int64_t lanes = LANES<double>;
  double value[lanes];
  x.store(value);
  for (int64_t i = 0; i < lanes; ++i) value[i] = std::tanh(value[i]);
  return Vectorized<double>::loadu(value);
}

template <typename T>
inline T sum_of(Vectorized<T> x) {
  T value[LANES<T>];
  x.store(value);
  for (int64_t half = LANES<T> / 2; half > 0; half /= 2)
    for (int64_t i = 0; i < half; ++i) value[i] += value[i + half];
  return value[0];
}

// The sum of row[first ... last).
template <typename T>
inline T total_of(const T* row, int64_t first, int64_t last) {
  Vectorized<T> sum(T(0));
  for (; first + LANES<T> <= last; first += LANES<T>) sum = sum + Vectorized<T>::loadu(row + first);
  T total = sum_of(sum), rest = 0;
  for (; first < last; ++first) rest += row[first];
  return total + rest;
}

template <typename T>
inline T max_of(Vectorized<T> x) {
  T value[LANES<T>];
  x.store(value);
  for (int64_t half = LANES<T> / 2; half > 0; half /= 2)
    for (int64_t i = 0; i < half; ++i) value[i] = value[i] < value[i + half] ? value[i + half] : value[i];
  return value[0];
}

// C (M, N) = or += A (M, K) B (K, N), M and N vectors small enough for the registers. Few of these are summed in
// several chains, because a sum waits for the one before it.
template <typename T, int M, int N>
inline void block(
    int64_t K, const T* A, int64_t a_row, int64_t a_col, const T* B, int64_t b_row, T* C, int64_t c_row, bool add) {
  using V = Vectorized<T>;
  constexpr int64_t lanes = LANES<T>;
  constexpr int CHAINS = M * N < 8 ? 8 / (M * N) : 1;
  V sum[CHAINS][M][N];
#pragma GCC unroll 8
  for (int c = 0; c < CHAINS; ++c)
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) sum[c][m][n] = V(T(0));
  const auto step = [&](int64_t k, V(&to)[M][N]) {
    V b[N];
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) b[n] = V::loadu(B + k * b_row + n * lanes);
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      const V a(A[m * a_row + k * a_col]);
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) to[m][n] = at::vec::fmadd(a, b[n], to[m][n]);
    }
  };
  int64_t k = 0;
  for (; k + CHAINS <= K; k += CHAINS)
#pragma GCC unroll 8
    for (int c = 0; c < CHAINS; ++c) step(k + c, sum[c]);
#pragma GCC unroll 8
  for (int c = 0; c < CHAINS - 1; ++c)  // each to its chain, so that zeros behind the last change nothing
    if (k + c < K) step(k + c, sum[c]);
  // added last, so that the error grows with the length of a block and the number of blocks, not with their product
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) {
      T* to = C + m * c_row + n * lanes;
      V total = sum[0][m][n];
#pragma GCC unroll 8
      for (int c = 1; c < CHAINS; ++c) total = total + sum[c][m][n];
      (add ? total + V::loadu(to) : total).store(to);
    }
}

template <typename T, int N>
inline void column(
    int64_t M, int64_t K, const T* A, int64_t a_row, int64_t a_col, const T* B, int64_t b_row, T* C, int64_t c_row,
    bool add) {
  int64_t m = 0;
  for (; m + ROWS <= M; m += ROWS)
    block<T, ROWS, N>(K, A + m * a_row, a_row, a_col, B, b_row, C + m * c_row, c_row, add);
  A += m * a_row;
  C += m * c_row;
  switch (M - m) {
    case 1:
      return block<T, 1, N>(K, A, a_row, a_col, B, b_row, C, c_row, add);
    case 2:
      return block<T, 2, N>(K, A, a_row, a_col, B, b_row, C, c_row, add);
    case 3:
      return block<T, 3, N>(K, A, a_row, a_col, B, b_row, C, c_row, add);
    case 4:
      return block<T, 4, N>(K, A, a_row, a_col, B, b_row, C, c_row, add);
    case 5:
      return block<T, 5, N>(K, A, a_row, a_col, B, b_row, C, c_row, add);
    default:
      return;
  }
}

// Number of terms summed sequentially: longer sums are sums of such sums, which halves their rounding error.
constexpr int64_t DEPTH = 32;

// C (M, N) = or += A (M, K) B (K, N). N is a multiple of the lanes. B lies in groups of PANEL columns, `b_group` apart:
// PANEL for an ordinary matrix, K · PANEL for one packed by `transpose`.
template <typename T>
void product(
    int64_t M, int64_t N, int64_t K, const T* A, int64_t a_row, int64_t a_col, const T* B, int64_t b_row,
    int64_t b_group, T* C, int64_t c_row, bool add) {
  for (int64_t n = 0; n < N; n += PANEL<T>, B += b_group) {
    T* c = C + n;
    const int64_t vectors = std::min<int64_t>(GROUP, (N - n) / LANES<T>);
    for (int64_t k = 0; k < K; k += DEPTH) {
      const int64_t depth = std::min(DEPTH, K - k);
      const T *a = A + k * a_col, *b = B + k * b_row;
      const bool more = add || k > 0;
      switch (vectors) {
        case 1:
          column<T, 1>(M, depth, a, a_row, a_col, b, b_row, c, c_row, more);
          break;
        case 2:
          column<T, 2>(M, depth, a, a_row, a_col, b, b_row, c, c_row, more);
          break;
#if defined(CPU_CAPABILITY_AVX512) || defined(__aarch64__)
        case 3:
          column<T, 3>(M, depth, a, a_row, a_col, b, b_row, c, c_row, more);
          break;
        case 4:
          column<T, 4>(M, depth, a, a_row, a_col, b, b_row, c, c_row, more);
          break;
#endif
        default:
          break;
      }
    }
  }
}

// The sum of each of LANES vectors that lie one behind the other, added as `sum_of` adds them.
template <typename T>
inline Vectorized<T> sums_of(const T* vectors) {
  constexpr int64_t lanes = LANES<T>;
  alignas(64) T turned[lanes * lanes];
  at::vec::transpose_mxn<T, lanes, lanes>(vectors, lanes, turned, lanes);
  Vectorized<T> sum[lanes];
#pragma GCC unroll 16
  for (int64_t i = 0; i < lanes; ++i) sum[i] = Vectorized<T>::loadu(turned + i * lanes);
#pragma GCC unroll 4
  for (int64_t half = lanes / 2; half > 0; half /= 2)
#pragma GCC unroll 8
    for (int64_t i = 0; i < half; ++i) sum[i] = sum[i] + sum[i + half];
  return sum[0];
}

// C (M, N) = scale · A (M, K) B (N, K)ᵀ for so few rows of A that packing B would cost more than the product. K is a
// multiple of the lanes.
template <typename T>
void products_of_few(
    int64_t M, int64_t N, int64_t K, T scale, const T* A, int64_t a_row, const T* B, int64_t b_row, T* C,
    int64_t c_row) {
  using V = Vectorized<T>;
  constexpr int64_t lanes = LANES<T>;
  int64_t n = 0;
  for (; n + lanes <= N; n += lanes, B += lanes * b_row)
    for (int64_t m = 0; m < M; ++m) {
      V sum[lanes];
#pragma GCC unroll 16
      for (int64_t i = 0; i < lanes; ++i) sum[i] = V(T(0));
      for (int64_t k = 0; k < K; k += lanes) {
        const V a = V::loadu(A + m * a_row + k);
#pragma GCC unroll 16
        for (int64_t i = 0; i < lanes; ++i) sum[i] = at::vec::fmadd(a, V::loadu(B + i * b_row + k), sum[i]);
      }
      alignas(64) T vectors[lanes * lanes];
#pragma GCC unroll 16
      for (int64_t i = 0; i < lanes; ++i) sum[i].store(vectors + i * lanes);
      (V(scale) * sums_of<T>(vectors)).store(C + m * c_row + n);
    }
  for (; n < N; ++n, B += b_row)
    for (int64_t m = 0; m < M; ++m) {
      V sum(T(0));
      for (int64_t k = 0; k < K; k += lanes) sum = at::vec::fmadd(V::loadu(A + m * a_row + k), V::loadu(B + k), sum);
      C[m * c_row + n] = scale * sum_of(sum);
    }
}

// Rows of any dtype, times `scale`, as rows of T of width `wide`, the rest zero.
template <typename T, typename In>
void pack(T* to, int64_t wide, const In* from, int64_t stride, int64_t rows, int64_t width, T scale) {
  for (int64_t r = 0; r < rows; ++r, to += wide, from += stride) {
    for (int64_t d = 0; d < width; ++d) to[d] = static_cast<T>(from[d]) * scale;
    for (int64_t d = width; d < wide; ++d) to[d] = T(0);
  }
}

// Rows (rows, width) as panels [group][d][PANEL]: the operand of a product whose columns are these rows. `rows` is
// rounded up to whole panels, which `from` must hold.
template <typename T>
void transpose(T* to, const T* from, int64_t stride, int64_t rows, int64_t width) {
  constexpr int64_t lanes = LANES<T>, panel = PANEL<T>;
  for (int64_t r = 0; r < rows; r += panel, to += width * panel) {
    for (int64_t n = 0; n < panel; n += lanes) {
      const T* source = from + (r + n) * stride;
      int64_t d = 0;
      for (; d + lanes <= width; d += lanes)
        at::vec::transpose_mxn<T, lanes, lanes>(source + d, stride, to + d * panel + n, panel);
      for (; d < width; ++d)
        for (int64_t i = 0; i < lanes; ++i) to[d * panel + n + i] = source[i * stride + d];
    }
  }
}

}  // namespace headway
