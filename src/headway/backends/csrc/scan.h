// Sums and products along the keys of each query, from the last key to the first, with queries in the lanes of vectors.
#pragma once

#include "tasks.h"
#include "tile.h"

namespace headway::scan {

// One call; library.py parses these lines to pass the same fields. Strides count elements; T is float, or double for
// double inputs. Weights are shares of a stick, or softmax of scores with sums of gates.
struct Call {
  int64_t batch, heads, kv_heads, queries, keys, dim, dim_v;
  const void *q, *k, *v;
  int64_t q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row;
  const int64_t *q_pos, *k_pos, *q_docs, *k_docs;  // documents may be null
  int64_t q_pos_batch, k_pos_batch, q_docs_batch, k_docs_batch;
  int64_t past, future;
  const int64_t *mask, *mask_q, *mask_k;  // what else hides pairs, see mask.h, or null
  int64_t mask_steps, mask_q_leaf, mask_q_batch, mask_k_leaf, mask_k_batch;
  const void* mask_table;  // (B, H, rows, columns) bytes, contiguous over columns, or null
  int64_t mask_table_batch, mask_table_head, mask_table_row;
  double scale;
  double dropout;       // share of the weights set to 0
  const int64_t* seed;  // decides which; null without dropout
  int64_t stick;        // whether keys take shares of a stick
  int64_t remainder;    // whether a query's own key, the last but as many as queries follow, takes the rest of it
  int64_t inclusive;    // whether a key is part of its own sum
  const void* table;    // (B, H, Q, W) T, looked up at the sums, or null: the sums are added
  int64_t table_batch, table_head, table_row, width;
  const void *left, *right;  // (B, H, Q, R) and (B, H, K, R) T: gates are slope · log σ(left·right); or null: σ(score)
  int64_t left_batch, left_head, left_row, right_batch, right_head, right_row, rank;
  const void* slope;  // (H) T, contiguous, or null: 1
  int64_t skip;       // whether tiles of negligible weight are skipped
  int64_t decoding;   // no backward will follow
  void* out;          // (B, H, Q, D_v)
  int64_t out_batch, out_head, out_row;
  void* sums;     // (B, H, 2, Q) T: a row's greatest score and 1 / its sum of exp(score - greatest), or 0, 0; or, of a
                  // stick, nothing and the weight of the query's own key
  void* borders;  // (B, H, 2, blocks of keys, Q) T, null in decoding: what the keys after a block left of the stick, or
                  // sum to, as a Stick or Sum of two numbers; -inf where a block was skipped
  void* exact;    // (B, H, Q, D_v) T, contiguous: out before it is rounded, or null
  // backward
  const void* grad;  // (B, H, Q, D_v)
  int64_t grad_batch, grad_head, grad_row;
  int64_t splits;    // number of tasks that share the queries of a head; each has its own d_k, d_v, d_right, d_slope
  const void* rest;  // (B, H, Q) T: that weight times its gradient, or null
  void* d_q;         // (B, H, Q, wide D) T
  int64_t d_q_batch, d_q_head, d_q_row;
  void *d_k, *d_v;  // (S, B, H_kv, K, wide D) and (S, B, H_kv, K, wide D_v) T
  int64_t d_k_split, d_k_batch, d_k_head, d_k_row, d_v_split, d_v_batch, d_v_head, d_v_row;
  void* d_table;           // (B, H, Q, W) T, contiguous, added to, or null
  void *d_left, *d_right;  // (B, H, Q, wide R) and (S, B, H, K, wide R) T, contiguous, added to, or null
  int64_t d_rank;          // wide R
  double* d_slope;         // (S, B, H), added to, or null
  int64_t* tiles;          // {computed, skipped}, added to
};

// σ(x) as the smaller of σ(x) and σ(−x), to a relative rounding, and 1 minus that; σ(−inf) = 0.
template <typename T>
struct Sigmoid {
  using V = Vectorized<T>;
  V small, large, below;  // below: the mask of x < 0, where the smaller is σ(x)

  explicit Sigmoid(V x) : below(x < V(T(0))) {
    const V e = exp_negative(x.abs().neg());
    large = V(T(1)) / (V(T(1)) + e);
    small = e * large;
  }
  V value() const { return V::blendv(large, small, below); }
  V other() const { return V::blendv(small, large, below); }
  V slope() const { return small * large; }

  // Both in one number, of which the smaller can be restored exactly.
  V packed() const {
    return V::blendv(at::vec::clamp_min(small, V(std::numeric_limits<T>::min())).neg(), small, below);
  }
  static void unpack(V packed, V& value, V& other) {
    const V above = packed < V(T(0));
    value = V::blendv(packed, V(T(1)) + packed, above);
    other = V::blendv(V(T(1)) - packed, packed.neg(), above);
  }
};

// log(1 + e) for 0 <= e <= 1 as 2 artanh(e / (2 + e)), whose series ends below the rounding of a float.
inline Vectorized<float> log_of_one_plus(Vectorized<float> e) {
  using V = Vectorized<float>;
  const V t = e / (V(2.0f) + e), square = t * t;
  V series(2.0f / 15);
  for (const float divisor : {13.0f, 11.0f, 9.0f, 7.0f, 5.0f, 3.0f})
    series = at::vec::fmadd(series, square, V(2.0f / divisor));
  return at::vec::fmadd(series * square, t, t + t);
}

inline Vectorized<double> log_of_one_plus(Vectorized<double> e) {
  double value[LANES<double>];
  e.store(value);
  for (double& x : value) x = std::log1p(x);
  return Vectorized<double>::loadu(value);
}

// Sums of which each is exact to a rounding or two, however long (Kahan).
template <typename T>
struct Sum {
  using V = Vectorized<T>;
  V high, low;

  static Sum load(const T* high, const T* low) { return {V::loadu(high), V::loadu(low)}; }
  void store(T* to_high, T* to_low) const {
    high.store(to_high);
    low.store(to_low);
  }
  void add(V x) {
    const V y = x + low, total = high + y;
    low = y - (total - high);
    high = total;
  }
};

// What is left of each query's stick. Where a share σ is below 1/2 it is subtracted, exact to a rounding or two after
// however many keys; elsewhere the rest is multiplied by 1 − σ, which after few keys leaves nothing.
template <typename T>
struct Stick {
  using V = Vectorized<T>;
  V rest, low;

  static Stick load(const T* rest, const T* low) { return {V::loadu(rest), V::loadu(low)}; }
  void store(T* to_rest, T* to_low) const {
    rest.store(to_rest);
    low.store(to_low);
  }
  // Break off and return the share of a key.
  V take(const Sigmoid<T>& share) {
    const V part = share.value(), taken = at::vec::fmadd(rest, part, low * part);
    const V y = low - taken, left = rest + y;
    low = V::blendv(low * share.small, y - (left - rest), share.below);
    rest = V::blendv(rest * share.small, left, share.below);
    return taken;
  }
};

// Which pairs of one sequence are hidden, in tiles of keys × queries.
template <typename T>
class Hidden {
 public:
  Hidden(const Call& call, int64_t b, int64_t h)
      : call_(call),
        mask_(call, b, h),
        q_pos_(call.q_pos + b * call.q_pos_batch),
        k_pos_(call.k_pos + b * call.k_pos_batch),
        q_docs_(call.q_docs == nullptr ? nullptr : call.q_docs + b * call.q_docs_batch),
        k_docs_(call.k_docs == nullptr ? nullptr : call.k_docs + b * call.k_docs_batch) {}

  bool visible(int64_t query, int64_t key) const {
    const int64_t apart = k_pos_[key] - q_pos_[query];
    return (k_pos_[key] >= 0) & (q_pos_[query] >= 0) & (apart <= call_.future) & (apart >= -call_.past) &
           (q_docs_ == nullptr || q_docs_[query] == k_docs_[key]);
  }
  bool padding(int64_t query) const { return q_pos_[query] < 0; }

  // Whether a query's own key, beyond the reach of a stick, is visible to it.
  bool own(int64_t query, int64_t key) const {
    const int64_t apart = k_pos_[key] - q_pos_[query];
    return k_pos_[key] >= 0 && q_pos_[query] >= 0 && apart <= 0 && apart >= -call_.past &&
           (q_docs_ == nullptr || q_docs_[query] == k_docs_[key]) && mask_.visible(query, key);
  }

  // Set the hidden pairs of keys [first, last) to `value`.
  void fill(const Tile& tile, int64_t first, int64_t last, T* values, int64_t stride, T value) const {
    if (!tile.edge) return;
    const int64_t rows = tile.rows();
    for (int64_t i = 0; tile.masked && i < rows; ++i) {
      const uint8_t* seen = mask_.row(tile.q->begin + i, tile.k->begin + first, tile.k->begin + last) - first;
      for (int64_t j = first; j < last; ++j)
        if (!seen[j]) values[j * stride + i] = value;
    }
    for (int64_t j = first; j < last; ++j) {
      T* row = values + j * stride;
      if (tile.regular) {
        const int64_t nearest = tile.distance + j - call_.future, furthest = tile.distance + j + call_.past + 1;
        std::fill(row, row + std::clamp<int64_t>(nearest, 0, rows), value);
        std::fill(row + std::clamp<int64_t>(furthest, 0, rows), row + rows, value);
      } else {
        for (int64_t i = 0; i < rows; ++i) row[i] = visible(tile.q->begin + i, tile.k->begin + j) ? row[i] : value;
      }
    }
  }

 private:
  const Call& call_;
  const Mask mask_;
  const int64_t *q_pos_, *k_pos_, *q_docs_, *k_docs_;
};

}  // namespace headway::scan
