// Biases and masks of a tile of scores, by the positions of its queries and keys.
#pragma once

#include "dense.h"

#include <vector>

namespace headway {

// One call; native.py parses these lines to pass the same fields. Strides count elements; T is float, or double for
// double inputs.
struct Call {
  int64_t batch, heads, kv_heads, queries, keys, dim, dim_v;
  const void *q, *k, *v;
  int64_t q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row;
  const int64_t *q_pos, *k_pos, *q_docs, *k_docs;  // documents may be null
  int64_t q_pos_batch, k_pos_batch, q_docs_batch, k_docs_batch;
  int64_t past, future;
  const void* per_key;  // (B, H, K) T, or null
  int64_t per_key_batch, per_key_head;
  const void *table, *tails;  // (H, W) and (H, 2) T, or null; contiguous
  int64_t width, left;
  const void* rows;  // (B, H, Q, W') T, or null
  int64_t rows_batch, rows_head, rows_row, rows_width, rows_left;
  const void* pairs;  // (B, H, Q, K) of one of by_kind's types, contiguous over keys, or null
  int64_t pairs_batch, pairs_head, pairs_row, pairs_kind;
  double scale;
  double dropout;       // share of the weights set to 0
  const int64_t* seed;  // decides which; null without dropout
  int64_t skip;         // whether tiles of negligible weight are skipped
  int64_t decoding;     // no backward will follow
  void* out;            // (B, H, Q, D_v)
  int64_t out_batch, out_head, out_row;
  void* sums;  // (B, H, Q, 2) T, contiguous: a row's greatest score, and 1 / its sum of exp(score - greatest), or 0, 0
  // backward
  const void* grad;  // (B, H, Q, D_v)
  int64_t grad_batch, grad_head, grad_row;
  int64_t splits;  // number of tasks that share the keys of a head; each has its own d_q, d_table, d_rows
  void* d_q;       // (S, B, H, Q, wide D) T
  int64_t d_q_split, d_q_batch, d_q_head, d_q_row;
  void *d_k, *d_v;  // (B, H_kv, K, D), (B, H_kv, K, D_v)
  int64_t d_k_batch, d_k_head, d_k_row, d_v_batch, d_v_head, d_v_row;
  void* d_per_key;            // (B, H, K) T, or null
  double *d_table, *d_tails;  // (S, B, H, W) and (S, B, H, 2), or null
  void* d_rows;               // (S, B, H, Q, W') T, or null
  void* d_pairs;              // T, contiguous, as broadcast as the pairs, or null
  int64_t* tiles;             // {computed, skipped}, added to
};

// The dtypes, numbered as in native.py.
template <typename T>
constexpr int64_t KIND = -1;
template <>
inline constexpr int64_t KIND<float> = 0;
template <>
inline constexpr int64_t KIND<c10::BFloat16> = 1;
template <>
inline constexpr int64_t KIND<c10::Half> = 2;
template <>
inline constexpr int64_t KIND<double> = 3;

// Which pairs of one head dropout keeps, as in backends/dropout.py: a hash of the seed and the pair's indices.
class Dropout {
 public:
  Dropout(const Call& call, int64_t b, int64_t h)
      : on(call.dropout > 0), factor_(1 / (1 - call.dropout)), least_(uint32_t(call.dropout * 4294967296.0)) {
    if (!on) return;
    head_ = mixed(uint32_t(b * call.heads + h)) ^ uint32_t(*call.seed);
    head_ = mixed(head_);
    high_ = uint32_t(uint64_t(*call.seed) >> 32);
  }

  // Zero the dropped columns in [first, wide) of a query's row, whose first key is `key`; scale up the others.
  template <typename T>
  void apply(T* row, int64_t query, int64_t key, int64_t first, int64_t wide) const {
    const uint32_t start = mixed(head_ ^ (uint32_t(query) + high_)) + uint32_t(key) * STEP, least = least_;
    const T factor = T(factor_);
    for (int64_t j = first; j < wide; ++j) row[j] = mixed(start + uint32_t(j) * STEP) >= least ? row[j] * factor : T(0);
  }

  const bool on;

 private:
  static constexpr uint32_t STEP = 0x9E3779B9u;
  static uint32_t mixed(uint32_t x) {
    x ^= x >> 16;
    x *= 0x7FEB352Du;
    x ^= x >> 15;
    x *= 0x846CA68Bu;
    return x ^ (x >> 16);
  }
  double factor_;
  uint32_t head_ = 0, high_ = 0, least_;
};

template <typename In>
const In* at_row(
    const void* start, int64_t b, int64_t b_stride, int64_t h, int64_t h_stride, int64_t r, int64_t r_stride) {
  return static_cast<const In*>(start) + b * b_stride + h * h_stride + r * r_stride;
}

// A block of neighbouring tokens and what is known of their positions.
struct Span {
  int64_t begin, end;         // tokens
  int64_t low, high;          // least and greatest position; low > high when all are padding
  int64_t doc_low, doc_high;  // likewise for documents
  bool unit;                  // positions go up by one, no padding

  int64_t size() const { return end - begin; }
};

inline std::vector<Span> spans(const int64_t* pos, const int64_t* docs, int64_t tokens, int64_t step) {
  std::vector<Span> result;
  for (int64_t begin = 0; begin < tokens; begin += step) {
    constexpr int64_t most = std::numeric_limits<int64_t>::max(), least = std::numeric_limits<int64_t>::min();
    Span span{begin, std::min(tokens, begin + step), most, least, most, least, true};
    for (int64_t i = begin; i < span.end; ++i) {
      span.unit &= pos[i] >= 0 && pos[i] == pos[begin] + (i - begin);
      if (pos[i] < 0) continue;
      span.low = std::min(span.low, pos[i]);
      span.high = std::max(span.high, pos[i]);
      const int64_t doc = docs == nullptr ? 0 : docs[i];
      span.doc_low = std::min(span.doc_low, doc);
      span.doc_high = std::max(span.doc_high, doc);
    }
    result.push_back(span);
  }
  return result;
}

// A rectangle of scores: queries of one span, keys of another, of which columns [first, last) are computed.
struct Tile {
  const Span *q, *k;
  int64_t first, last;  // `first` is a multiple of PANEL, both count from k->begin
  int64_t wide;         // `last` rounded up to whole vectors
  int64_t distance;     // of the first query and key; that of (i, j) is distance + j - i if regular
  bool regular;         // it is, and all pairs are of one document
  bool edge;            // some pair in [first, wide) is hidden

  int64_t rows() const { return q->size(); }
};

// Find the columns of a tile to compute; false if all of it is hidden.
template <typename T>
bool look(const Call& call, const Span& q, const Span& k, Tile& tile) {
  if (q.low > q.high || k.low > k.high) return false;
  if (k.low - q.high > call.future || k.high - q.low < -call.past) return false;
  if (q.doc_low > k.doc_high || k.doc_low > q.doc_high) return false;
  tile.q = &q;
  tile.k = &k;
  tile.first = 0;
  tile.last = k.size();
  tile.regular = q.unit && k.unit && q.doc_low == q.doc_high && k.doc_low == k.doc_high;
  tile.distance = k.low - q.low;
  tile.edge = !tile.regular;
  if (tile.regular) {
    // the first row sees furthest into the past, the last furthest into the future
    const int64_t nearest = call.future - tile.distance + tile.rows();  // one past the last column the last row sees
    const int64_t furthest = -call.past - tile.distance;                // the first column the first row sees
    tile.edge = k.high - q.low > call.future || k.low - q.high < -call.past;
    if (nearest < tile.last) tile.last = nearest;
    if (furthest > 0) tile.first = furthest / PANEL<T> * PANEL<T>;
    if (tile.first >= tile.last) return false;
  }
  tile.wide = round_up(tile.last, LANES<T>);
  tile.edge |= tile.wide != tile.last;
  return true;
}

// What is added to one row of a tile: `each[column]` if not null, and `all`.
template <typename T>
struct Added {
  const T* each;
  T all;
};

// The terms of one head, tile by tile.
template <typename T>
class Terms {
 public:
  Terms(const Call& call, int64_t b, int64_t h)
      : call_(call),
        q_pos_(call.q_pos + b * call.q_pos_batch),
        k_pos_(call.k_pos + b * call.k_pos_batch),
        q_docs_(call.q_docs == nullptr ? nullptr : call.q_docs + b * call.q_docs_batch),
        k_docs_(call.k_docs == nullptr ? nullptr : call.k_docs + b * call.k_docs_batch),
        per_key_(
            call.per_key == nullptr ? nullptr
                                    : at_row<T>(call.per_key, b, call.per_key_batch, h, call.per_key_head, 0, 0)),
        table_(call.table == nullptr ? nullptr : static_cast<const T*>(call.table) + h * call.width),
        rows_(call.rows == nullptr ? nullptr : at_row<T>(call.rows, b, call.rows_batch, h, call.rows_head, 0, 0)),
        pairs_(b * call.pairs_batch + h * call.pairs_head) {
    if (call.tails != nullptr) {
      past_tail_ = static_cast<const T*>(call.tails)[2 * h];
      future_tail_ = static_cast<const T*>(call.tails)[2 * h + 1];
    }
  }

  // The table at a distance.
  T at(int64_t distance) const {
    const int64_t entry = distance + call_.left, inside = clamp(entry, call_.width);
    return table_[inside] + (entry < inside ? past_tail_ : future_tail_) * T(std::abs(entry - inside));
  }

  // Prepare for the rows of a tile. `line` has room for rows + columns + lanes values.
  void enter(const Tile& tile, T* line) {
    tile_ = &tile;
    line_ = nullptr;
    all_ = T(0);
    if (table_ == nullptr || !tile.regular) return;
    const int64_t lowest = lowest_distance(), count = tile.rows() - 1 + tile.wide;
    const int64_t from = lowest + tile.first + call_.left, to = lowest + count - 1 + call_.left;
    // a tail whose gradient is needed counts even if it is zero
    const bool flat = call_.d_tails == nullptr;
    if (to <= 0 && flat && past_tail_ == T(0)) {
      all_ = table_[all_entry_ = 0];
    } else if (from >= call_.width - 1 && flat && future_tail_ == T(0)) {
      all_ = table_[all_entry_ = call_.width - 1];
    } else {
      line_ = line;
      fill(line, tile.first, count, lowest);
    }
  }

  // What is added to row i of the tile; `row` has room for as many values as the tile is wide.
  Added<T> of_row(int64_t i, T* row) const {
    const Tile& tile = *tile_;
    if (!tile.regular) {
      irregular(i, row);
      return {row, T(0)};
    }
    const T* line = line_ == nullptr ? nullptr : line_ + (tile.rows() - 1 - i);
    const T* key = per_key_ == nullptr ? nullptr : per_key_ + tile.k->begin;
    T all = all_;
    const T* own = nullptr;
    int64_t entry = 0;  // of column 0 in the query's own table
    if (rows_ != nullptr) {
      own = rows_ + (tile.q->begin + i) * call_.rows_row;
      entry = tile.distance - i + call_.rows_left;
      if (entry + tile.wide - 1 <= 0) {
        all += own[0];
        own = nullptr;
      } else if (entry + tile.first >= call_.rows_width - 1) {
        all += own[call_.rows_width - 1];
        own = nullptr;
      }
    }
    const bool simple = own == nullptr && (line == nullptr || key == nullptr);
    if (!tile.edge && simple && call_.pairs == nullptr) return {line == nullptr ? key : line, all};
    if (!tile.edge && own == nullptr && line == nullptr && key == nullptr && pairs_are<T>()) return {pair<T>(i), all};
    int64_t first = tile.first, last = tile.last;
    if (tile.edge) {
      first = clamp(-call_.past - tile.distance + i, first, last);
      last = clamp(call_.future - tile.distance + i + 1, first, last);
      std::fill(row + tile.first, row + first, -std::numeric_limits<T>::infinity());
      std::fill(row + last, row + tile.wide, -std::numeric_limits<T>::infinity());
    }
    if (line != nullptr && key != nullptr) {
      for (int64_t j = first; j < last; ++j) row[j] = line[j] + key[j];
    } else if (line != nullptr || key != nullptr) {
      std::copy((line == nullptr ? key : line) + first, (line == nullptr ? key : line) + last, row + first);
    } else {
      std::fill(row + first, row + last, T(0));
    }
    if (own != nullptr) {
      const int64_t begin = clamp(-entry, first, last), end = clamp(call_.rows_width - entry, begin, last);
      for (int64_t j = first; j < begin; ++j) row[j] += own[0];
      for (int64_t j = begin; j < end; ++j) row[j] += own[entry + j];
      for (int64_t j = end; j < last; ++j) row[j] += own[call_.rows_width - 1];
    }
    add_pairs(i, first, last, row);
    return {row, all};
  }

  // An upper bound of what the table and the keys add to any score of the tile.
  T most(const Tile& tile) const {
    if (call_.pairs != nullptr) return std::numeric_limits<T>::infinity();
    T bound = T(0);
    const int64_t nearest = tile.k->high - tile.q->low, furthest = tile.k->low - tile.q->high;
    if (table_ != nullptr) {
      // linear beyond the ends, so the greatest value is at an end of the tile or inside the table
      bound = std::max(at(furthest), at(nearest));
      const int64_t from = std::max<int64_t>(furthest + call_.left, 0);
      const int64_t to = std::min(nearest + call_.left, call_.width - 1);
      if (from <= to) bound = std::max(bound, *std::max_element(table_ + from, table_ + to + 1));
    }
    if (per_key_ != nullptr) bound += *std::max_element(per_key_ + tile.k->begin, per_key_ + tile.k->end);
    return bound;
  }

  static int64_t clamp(int64_t entry, int64_t width) { return std::min(std::max<int64_t>(entry, 0), width - 1); }
  static int64_t clamp(int64_t x, int64_t low, int64_t high) { return std::min(std::max(x, low), high); }

 protected:
  int64_t lowest_distance() const { return tile_->distance - (tile_->rows() - 1); }
  int64_t distance(int64_t i, int64_t j) const { return k_pos_[tile_->k->begin + j] - q_pos_[tile_->q->begin + i]; }

  bool visible(int64_t i, int64_t j) const {
    const int64_t query = tile_->q->begin + i, key = tile_->k->begin + j, apart = k_pos_[key] - q_pos_[query];
    return k_pos_[key] >= 0 && q_pos_[query] >= 0 && apart <= call_.future && apart >= -call_.past &&
           (q_docs_ == nullptr || q_docs_[query] == k_docs_[key]);
  }

  template <typename P>
  bool pairs_are() const {
    return call_.pairs != nullptr && call_.pairs_kind == KIND<P>;
  }
  // What is added per pair, of row i and the tile's first key on.
  template <typename P>
  const P* pair(int64_t i) const {
    return static_cast<const P*>(call_.pairs) + pairs_ + (tile_->q->begin + i) * call_.pairs_row + tile_->k->begin;
  }
  void add_pairs(int64_t i, int64_t first, int64_t last, T* row) const {
    if (call_.pairs == nullptr) return;
    const auto add = [&](const auto* each) {
      for (int64_t j = first; j < last; ++j) row[j] += static_cast<T>(each[j]);
    };
    if (pairs_are<float>()) add(pair<float>(i));
    if (pairs_are<double>()) add(pair<double>(i));
    if (pairs_are<c10::BFloat16>()) add(pair<c10::BFloat16>(i));
    if (pairs_are<c10::Half>()) add(pair<c10::Half>(i));
  }

  const Call& call_;
  const int64_t *q_pos_, *k_pos_, *q_docs_, *k_docs_;
  const T *per_key_, *table_, *rows_;
  const int64_t pairs_;
  T past_tail_ = T(0), future_tail_ = T(0);
  const Tile* tile_ = nullptr;
  const T* line_ = nullptr;  // the table over the tile's distances, or null
  T all_ = T(0);             // or its one value there,
  int64_t all_entry_ = 0;    // which is this entry's

 private:
  // line[u] = the table at distance lowest + u, for u in [first, count)
  void fill(T* line, int64_t first, int64_t count, int64_t lowest) const {
    const int64_t entry = lowest + call_.left;
    const int64_t begin = clamp(-entry, first, count), end = clamp(call_.width - entry, begin, count);
    const T low = table_[0], high = table_[call_.width - 1];
    for (int64_t u = first; u < begin; ++u) line[u] = low + past_tail_ * T(-entry - u);
    for (int64_t u = begin; u < end; ++u) line[u] = table_[entry + u];
    for (int64_t u = end; u < count; ++u) line[u] = high + future_tail_ * T(entry + u - (call_.width - 1));
  }

  void irregular(int64_t i, T* row) const {
    const Tile& tile = *tile_;
    for (int64_t j = tile.first; j < tile.wide; ++j) {
      if (j >= tile.last || !visible(i, j)) {
        row[j] = -std::numeric_limits<T>::infinity();
        continue;
      }
      const int64_t apart = distance(i, j);
      T sum = table_ == nullptr ? T(0) : at(apart);
      if (per_key_ != nullptr) sum += per_key_[tile.k->begin + j];
      if (rows_ != nullptr)
        sum += rows_[(tile.q->begin + i) * call_.rows_row + clamp(apart + call_.rows_left, call_.rows_width)];
      row[j] = sum;
    }
    add_pairs(i, tile.first, tile.last, row);
  }
};

template <typename T, typename In>
inline T squared_length(const In* row, int64_t width) {
  T buffer[LANES<T>];
  Vectorized<T> sum(T(0));
  int64_t d = 0;
  for (; d + LANES<T> <= width; d += LANES<T>) {
    for (int64_t i = 0; i < LANES<T>; ++i) buffer[i] = static_cast<T>(row[d + i]);
    const auto x = Vectorized<T>::loadu(buffer);
    sum = at::vec::fmadd(x, x, sum);
  }
  T total = sum_of(sum);
  for (; d < width; ++d) total += static_cast<T>(row[d]) * static_cast<T>(row[d]);
  return total;
}

// Bounds on the weights of a head from its largest entries. A tile is negligible if none of its weights can exceed
// roundoff / 256 / keys of its row's greatest, divided by how much longer its keys and values may be than others: then
// all that is skipped of a row is less than 1/256 of one rounding of what is kept, for values as for weights.
template <typename T>
struct Bounds {
  std::vector<T> q, k, rows;                          // per span: the longest query, scaled key, and largest own term
  T threshold = -std::numeric_limits<T>::infinity();  // -inf: nothing is negligible

  template <typename In>
  void measure(
      const Call& call, int64_t b, int64_t h, const std::vector<Span>& q_spans, const std::vector<Span>& k_spans) {
    // in decoding, reading the keys and values for their norms would cost more than it saves
    if (!call.skip || (call.decoding && call.queries <= FEW) || call.pairs != nullptr || !may_decay(call, h)) return;
    const int64_t h_kv = h / (call.heads / call.kv_heads);
    const int64_t* k_pos = call.k_pos + b * call.k_pos_batch;
    const T infinite = std::numeric_limits<T>::infinity();
    T shortest_k = infinite, longest_k = 0, shortest_v = infinite, longest_v = 0;
    for (const Span& span : k_spans) {
      T longest = 0;
      for (int64_t j = span.begin; j < span.end; ++j) {
        if (k_pos[j] < 0) continue;
        const T key =
            squared_length<T>(at_row<In>(call.k, b, call.k_batch, h_kv, call.k_head, j, call.k_row), call.dim);
        const T value =
            squared_length<T>(at_row<In>(call.v, b, call.v_batch, h_kv, call.v_head, j, call.v_row), call.dim_v);
        // NaN must show in the result: no bound holds for it
        longest = key <= std::numeric_limits<T>::max() ? std::max(longest, key) : infinite;
        shortest_k = std::min(shortest_k, key);
        shortest_v = std::min(shortest_v, value);
        longest_v = value <= std::numeric_limits<T>::max() ? std::max(longest_v, value) : infinite;
      }
      longest_k = std::max(longest_k, longest);
      k.push_back(std::sqrt(longest) * std::abs(T(call.scale)));
    }
    for (const Span& span : q_spans) {
      T longest = 0;
      for (int64_t i = span.begin; i < span.end; ++i) {
        const T query = squared_length<T>(at_row<In>(call.q, b, call.q_batch, h, call.q_head, i, call.q_row), call.dim);
        longest = query <= std::numeric_limits<T>::max() ? std::max(longest, query) : infinite;
      }
      q.push_back(std::sqrt(longest));
      T most = 0;
      if (call.rows != nullptr) {
        most = -infinite;
        for (int64_t i = span.begin; i < span.end; ++i) {
          const T* row = at_row<T>(call.rows, b, call.rows_batch, h, call.rows_head, i, call.rows_row);
          most = std::max(most, *std::max_element(row, row + call.rows_width));
        }
      }
      rows.push_back(most);
    }
    T spread = 0;
    if (longest_k > 0) spread += std::log(longest_k / shortest_k) / 2;
    if (longest_v > 0) spread += std::log(longest_v / shortest_v) / 2;
    threshold = std::log(std::numeric_limits<T>::epsilon() / 512 / T(call.keys)) - spread;
  }

 private:
  // A table whose values differ little cannot make a weight negligible.
  static bool may_decay(const Call& call, int64_t h) {
    if (call.per_key != nullptr || call.rows != nullptr || call.tails != nullptr) return true;
    if (call.table == nullptr) return false;
    const T* table = static_cast<const T*>(call.table) + h * call.width;
    const auto ends = std::minmax_element(table, table + call.width);
    return *ends.second - *ends.first > -std::log(std::numeric_limits<T>::epsilon());
  }
};

}  // namespace headway
