// Attention whose heads a small network mixes, pair by pair, before the softmax (DAPE).
//
//     X = A = scale q k of all heads, zero where hidden
//     hidden = LeakyReLU(first_bias + sum over taps of first X and of a table by distance), zero where hidden
//     S = A + B + sum over taps of second hidden
//     out = softmax(S) v
//
// B depends on the distance alone, and so does what the network makes of it: only the half of its first layer that
// reads A is left to do per pair. All heads of a tile of scores are held at once; the network runs row by row, with
// keys in the lanes. Taps reach over the border of a tile, whose scores are computed a few columns further on both
// sides: backward then adds to the gradients of these what the tile's own columns contribute.
#include "mix.h"
#include "tasks.h"
#include "tile.h"

#include <numeric>
#include <utility>
#include <vector>

namespace headway::mix {

constexpr int64_t COLUMNS = 96, MOST_ROWS = 60;
constexpr size_t TILE_BYTES = 320 << 10;  // of the scores of all heads of a tile
constexpr int64_t SETTLE = 8;             // rows whose gradients of weights are summed in T, in backward
constexpr double SLOPE = 0.01;            // of LeakyReLU below 0

// Registers of a product with the network's weights: OUT rows of N vectors; of one for their gradients: LEFT x RIGHT.
constexpr int OUT = 4, MOST = GROUP == 4 ? 6 : 3, LEFT = GROUP == 4 ? 4 : 2, RIGHT = 4;

// ------------------------------------------------------------------------------------------------ rows of the network

// Weights (rows, count) as [rows / OUT][count][OUT], padded with zeros.
template <typename T, typename At>
std::vector<T> packed(int64_t rows, int64_t count, const At& at) {
  std::vector<T> to(round_up(rows, OUT) * count, T(0));
  for (int64_t m = 0; m < rows; ++m)
    for (int64_t c = 0; c < count; ++c) to[(m / OUT * count + c) * OUT + m % OUT] = at(m, c);
  return to;
}

template <typename T, int N, typename Store>
inline void some_columns(
    int64_t rows, int64_t count, const T* weights, const T* const* in, const T* const* init, int64_t j,
    const Store& store) {
  using V = Vectorized<T>;
  constexpr int64_t lanes = LANES<T>;
  for (int64_t first = 0; first < rows; first += OUT, weights += count * OUT) {
    const int64_t here = std::min<int64_t>(OUT, rows - first);
    V sum[OUT][N];
#pragma GCC unroll 8
    for (int m = 0; m < OUT; ++m)
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) sum[m][n] = V(T(0));
    const T* w = weights;
    for (int64_t c = 0; c < count; ++c, w += OUT) {
      V x[N];
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) x[n] = V::loadu(in[c] + j + n * lanes);
#pragma GCC unroll 8
      for (int m = 0; m < OUT; ++m) {
        const V a(w[m]);
#pragma GCC unroll 8
        for (int n = 0; n < N; ++n) sum[m][n] = at::vec::fmadd(a, x[n], sum[m][n]);
      }
    }
#pragma GCC unroll 8
    for (int m = 0; m < OUT; ++m)
      if (m < here)
#pragma GCC unroll 8
        for (int n = 0; n < N; ++n) {
          const int64_t at = j + n * lanes;  // what may be large is added last, so that it rounds once
          store(first + m, at, init == nullptr ? sum[m][n] : V::loadu(init[first + m] + at) + sum[m][n]);
        }
  }
}

// store(m, j, init[m](j) + sum_c weights[m][c] in[c](j)) for vectors of columns from `begin` until all below `end` are.
template <typename T, typename Store>
void product_of_rows(
    int64_t rows, int64_t count, const std::vector<T>& weights, const T* const* in, const T* const* init, int64_t begin,
    int64_t end, const Store& store) {
  constexpr int64_t lanes = LANES<T>;
  int64_t left = (end - begin + lanes - 1) / lanes;
  const auto go = [&]<int N>() {
    some_columns<T, N>(rows, count, weights.data(), in, init, begin, store);
    begin += N * lanes;
    left -= N;
  };
  while (left > MOST + 1 || left == MOST) go.template operator()<MOST>();
  if constexpr (MOST == 6) {
    if (left == 7) go.template operator()<4>();
    if (left == 5) go.template operator()<5>();
    if (left == 4) go.template operator()<4>();
    if (left == 3) go.template operator()<3>();
  }
  while (left >= 2) go.template operator()<2>();
  if (left == 1) go.template operator()<1>();
}

// sums (a, b) += left[a] right[b] lane by lane, in blocks [a / LEFT][b / RIGHT][LEFT][RIGHT]. The numbers of rows are
// rounded up to whole blocks, which the pointers must cover.
template <typename T>
void products_of_pairs(
    int64_t lefts, int64_t rights, const T* const* left, const T* const* right, int64_t begin, int64_t end, T* sums) {
  using V = Vectorized<T>;
  constexpr int64_t lanes = LANES<T>;
  for (int64_t a = 0; a < lefts; a += LEFT)
    for (int64_t b = 0; b < rights; b += RIGHT, sums += LEFT * RIGHT * lanes) {
      V sum[LEFT][RIGHT];
#pragma GCC unroll 8
      for (int m = 0; m < LEFT; ++m)
#pragma GCC unroll 8
        for (int n = 0; n < RIGHT; ++n) sum[m][n] = V(T(0));
      for (int64_t j = begin; j < end; j += lanes) {
        V x[RIGHT];
#pragma GCC unroll 8
        for (int n = 0; n < RIGHT; ++n) x[n] = V::loadu(right[b + n] + j);
#pragma GCC unroll 8
        for (int m = 0; m < LEFT; ++m) {
          const V y = V::loadu(left[a + m] + j);
#pragma GCC unroll 8
          for (int n = 0; n < RIGHT; ++n) sum[m][n] = at::vec::fmadd(y, x[n], sum[m][n]);
        }
      }
#pragma GCC unroll 8
      for (int m = 0; m < LEFT; ++m)
#pragma GCC unroll 8
        for (int n = 0; n < RIGHT; ++n) {
          T* to = sums + (m * RIGHT + n) * lanes;
          (V::loadu(to) + sum[m][n]).store(to);  // added last: a sum of sums errs less
        }
    }
}

// Add the lanes of such sums to to[a · a_stride + place(b)].
template <typename T, typename Place>
void add_pairs(int64_t lefts, int64_t rights, int64_t a_stride, const Place& place, const double* sums, double* to) {
  for (int64_t a = 0; a < lefts; a += LEFT)
    for (int64_t b = 0; b < rights; b += RIGHT)
      for (int m = 0; m < LEFT; ++m)
        for (int n = 0; n < RIGHT; ++n, sums += LANES<T>)
          if (a + m < lefts && b + n < rights)
            to[(a + m) * a_stride + place(b + n)] += std::accumulate(sums, sums + LANES<T>, 0.0);
}

template <typename T>
void add_row(T* to, const T* from, int64_t begin, int64_t end) {
  using V = Vectorized<T>;
  for (int64_t j = begin; j < end; j += LANES<T>) (V::loadu(to + j) + V::loadu(from + j)).store(to + j);
}

template <typename T>
void mask_row(T* row, const T* seen, int64_t begin, int64_t end, T otherwise) {
  for (int64_t j = begin; j < end; ++j) row[j] = seen[j] == T(0) ? otherwise : row[j];
}

// --------------------------------------------------------------------------------------------------- a call's numbers

template <typename T>
struct Sizes {
  int64_t heads, hidden, taps, reach, pad, wide, stride, rows, channels, line;
  int64_t lefts, rights;  // the most pointers of either side of a product of pairs

  explicit Sizes(const Call& call)
      : heads(call.heads),
        hidden(call.hidden),
        taps(call.taps),
        reach(call.taps / 2),
        pad(round_up(3 * (call.taps / 2), PANEL<T>)),
        wide(round_up(std::min(COLUMNS, round_up(call.keys, LANES<T>)), PANEL<T>) + 2 * pad),
        stride(wide + PANEL<T>),
        channels(call.heads + call.taps * call.hidden) {
    rows = int64_t(TILE_BYTES / sizeof(T)) / (heads * stride) / ROWS * ROWS;
    rows = std::min(std::min(std::max<int64_t>(rows, ROWS), MOST_ROWS), std::max<int64_t>(call.queries, 1));
    line = round_up(rows + stride + 2 * reach + taps, LANES<T>) + LANES<T>;  // read and added to in whole vectors
    lefts = round_up(std::max(heads, hidden), LEFT);
    rights = round_up(taps * std::max(heads, hidden), RIGHT);
  }
  int64_t columns() const { return wide - 2 * pad; }
  // Values of the sums of products of `left` rows with the taps of `right` rows.
  int64_t pairs(int64_t left, int64_t right) const {
    return round_up(left, LEFT) * round_up(taps * right, RIGHT) * LANES<T>;
  }
};

// What the tasks of a call share.
template <typename T>
struct Shared {
  std::vector<T> first, second, first_back, second_back;  // packed weights
  std::vector<T> k, v;                                    // panels of all keys, if needed

  Shared(const Call& call, const Sizes<T>& s, bool backward) {
    const T *one = static_cast<const T*>(call.first), *two = static_cast<const T*>(call.second);
    const int64_t H = s.heads, F = s.hidden, taps = s.taps;
    first = packed<T>(F, taps * H, [&](int64_t f, int64_t c) { return one[(f * H + c % H) * taps + c / H]; });
    second = packed<T>(H, taps * F, [&](int64_t h, int64_t c) { return two[(h * F + c % F) * taps + c / F]; });
    if (backward) {
      second_back = packed<T>(F, taps * H, [&](int64_t f, int64_t c) { return two[(c % H * F + f) * taps + c / H]; });
      first_back = packed<T>(H, taps * F, [&](int64_t h, int64_t c) { return one[(c % F * H + h) * taps + c / F]; });
    }
    if (!call.decoding || call.queries > FEW) panels(call, call.k, call.k_batch, call.k_head, call.k_row, call.dim, k);
    if (backward) panels(call, call.v, call.v_batch, call.v_head, call.v_row, call.dim_v, v);
  }

  static void panels(
      const Call& call, const void* from, int64_t batch, int64_t head, int64_t row, int64_t width, std::vector<T>& to) {
    const int64_t keys = round_up(call.keys, PANEL<T>);
    to.resize(call.batch * call.kv_heads * keys * width);
    at::parallel_for(0, call.batch * call.kv_heads, 1, [&](int64_t begin, int64_t end) {
      std::vector<T> rest(PANEL<T> * width);
      for (int64_t bh = begin; bh < end; ++bh) {
        const T* start = at_row<T>(from, bh / call.kv_heads, batch, bh % call.kv_heads, head, 0, row);
        T* panel = to.data() + bh * keys * width;
        const int64_t whole = call.keys / PANEL<T> * PANEL<T>;
        transpose<T>(panel, start, row, whole, width);
        if (whole == call.keys) continue;
        pack<T, T>(rest.data(), width, start + whole * row, row, call.keys - whole, width, T(1));
        transpose<T>(panel + whole * width, rest.data(), width, keys - whole, width);
      }
    });
  }
};

// Memory of a task, all of it zero at the start, so that columns beyond what is computed hold finite numbers.
template <typename T>
struct Room {
  T *scores, *weights, *q;                  // (H, R, stride), (H, R, columns) and (H, R, D)
  T *seen, *plane, *bias, *hidden, *mixed;  // a row of a tile: (stride), (F, stride), (H, stride) …
  T *lines, *total;                         // by distance: (channels, line) and (F, line)
  T *near_scores, *near_hidden;             // of irregular neighbours: (taps H, stride) and (taps F, stride)
  T* far;                                   // (stride)
  T *result, *most, *sum;                   // forward: (H, R, D_v), (H, R), (H, R)
  T *d_q, *d_scores, *d_hidden, *near_d_scores, *near_d_hidden, *d_lines, *d_total, *d_first, *d_second, *d_bias;
  T* mean;
  double *all_first, *all_second;
  size_t bytes = 0;

  Room(const Call& call, const Sizes<T>& s, bool backward, Scratch* room) {
    const auto take_some = [&]<typename N>(int64_t count, N*& to) {
      bytes += round_up(count * sizeof(N), 64);
      if (room != nullptr) to = static_cast<N*>(std::memset(room->take<N>(count), 0, count * sizeof(N)));
    };
    const auto take = [&](int64_t count) -> T* {
      T* taken = nullptr;
      take_some(count, taken);
      return taken;
    };
    const int64_t H = s.heads, F = s.hidden, taps = s.taps, near = call.order == nullptr ? 0 : taps;
    scores = take(H * s.rows * s.stride);
    weights = take(H * s.rows * s.columns());
    q = take(H * s.rows * call.dim);
    seen = take(s.stride);
    plane = take(F * s.stride);
    bias = take(H * s.stride);
    hidden = take(F * s.stride);
    mixed = take(H * s.stride);
    lines = take(s.channels * s.line);
    total = take(F * s.line);
    near_scores = take(near * H * s.stride);
    near_hidden = take(near * F * s.stride);
    far = take(s.stride);
    if (!backward) {
      result = take(H * s.rows * call.dim_v);
      most = take(H * s.rows);
      sum = take(H * s.rows);
      return;
    }
    d_q = take(H * s.rows * call.dim);
    d_scores = take(H * s.stride);
    d_hidden = take(F * s.stride);
    near_d_scores = take(near * H * s.stride);
    near_d_hidden = take(near * F * s.stride);
    d_lines = take(s.channels * s.line);
    d_total = take(F * s.line);
    d_first = take(s.pairs(F, H));
    d_second = take(s.pairs(H, F));
    d_bias = take(F * LANES<T>);
    mean = take(H * s.rows);
    take_some(s.pairs(F, H), all_first);
    take_some(s.pairs(H, F), all_second);
  }
};

// A block of queries and a block of keys, with what the taps reach of the keys beside it. Column c is key `key + c`.
struct Area {
  Span q, k;             // k with its neighbours
  int64_t key;           // of column 0, may be negative
  int64_t from, to;      // columns that are keys
  int64_t first, last;   // columns whose scores are computed
  int64_t begin, end;    // columns of whole panels that these need
  int64_t lowest;        // distance of column 0 and the last query, if regular
  bool regular, beside;  // beside: neighbours lie beside each other in memory
};

// One row of a tile.
struct Row {
  int64_t first, last;  // columns whose scores are computed, a multiple of the lanes
  bool whole;           // all columns in reach of these are visible
};

// The network on the rows of a tile.
template <typename T>
class Network {
 public:
  using V = Vectorized<T>;
  static constexpr int64_t lanes = LANES<T>;

  Network(const Call& call, const Sizes<T>& s, const Shared<T>& shared, const Room<T>& room, int64_t b)
      : call_(call),
        s_(s),
        shared_(shared),
        room_(room),
        q_pos_(call.q_pos + b * call.q_pos_batch),
        k_pos_(call.k_pos + b * call.k_pos_batch),
        q_docs_(call.q_docs == nullptr ? nullptr : call.q_docs + b * call.q_docs_batch),
        k_docs_(call.k_docs == nullptr ? nullptr : call.k_docs + b * call.k_docs_batch),
        mask_(call, b, 0),
        order_(call.order == nullptr ? nullptr : call.order + b * call.order_batch),
        table_(static_cast<const T*>(call.table)),
        tails_(static_cast<const T*>(call.tails)),
        first_bias_(static_cast<const T*>(call.first_bias)),
        zeros_(s.stride, T(0)),
        entry_(s.stride),
        near_(s.taps * s.stride, -1),
        in_(s.taps * std::max(s.heads, s.hidden)),
        hidden_in_(s.rights, zeros_.data()),
        scores_in_(s.rights, zeros_.data()),
        left_(s.lefts, zeros_.data()),
        init_(std::max(s.heads, s.hidden)),
        bias_(s.heads),
        all_(s.hidden) {}

  // The block of keys that starts at `begin` and the queries from `query` on; false if nothing is to be computed.
  bool enter(int64_t query, int64_t rows, int64_t begin) {
    if (!find(query, rows, begin)) return false;
    neighbours();
    if (area_.regular) fill_lines();
    return true;
  }

  // The same without preparing for its rows.
  bool find(int64_t query, int64_t rows, int64_t begin) {
    Area& a = area_;
    const int64_t end = std::min(call_.keys, begin + s_.columns()), pad = s_.pad, reach = 2 * s_.reach;
    a.q = span(q_pos_, q_docs_, query, query + rows);
    const Span own = span(k_pos_, k_docs_, begin, end);
    if (a.q.low > a.q.high || own.low > own.high) return false;
    if (own.low - a.q.high > call_.future || own.high - a.q.low < -call_.past) return false;
    if (a.q.doc_low > own.doc_high || own.doc_low > a.q.doc_high) return false;
    if (mask_.of(query, query + rows, begin, end) == Mask::HIDDEN) return false;
    a.k = span(k_pos_, k_docs_, std::max<int64_t>(0, begin - reach), std::min(call_.keys, end + reach));
    a.key = begin - pad;
    a.from = a.k.begin - a.key;
    a.to = a.k.end - a.key;
    a.regular = a.q.unit && a.k.unit && a.q.doc_low == a.q.doc_high && a.k.doc_low == a.k.doc_high &&
                a.q.doc_low == a.k.doc_low && mask_.of(query, query + rows, a.k.begin, a.k.end) == Mask::ALL;
    a.first = pad;
    a.last = pad + end - begin;
    if (a.regular) {
      a.lowest = a.k.low - a.from - (a.q.low + rows - 1);
      a.first = std::max(a.first, -call_.past - a.lowest - (rows - 1));
      a.last = std::min(a.last, call_.future - a.lowest + 1);
      if (a.first >= a.last) return false;
    }
    a.begin = std::max<int64_t>(0, a.first - reach) / PANEL<T> * PANEL<T>;
    a.end = std::min(s_.wide, round_up(a.last + reach, PANEL<T>));
    return true;
  }

  const Area& area() const { return area_; }

  // Which columns row i sees; false if none of the tile's own.
  bool look(int64_t i, Row& row) {
    const Area& a = area_;
    const int64_t reach = 2 * s_.reach;
    int64_t low = a.first, high = a.last;
    if (a.regular) {
      const int64_t lowest = a.lowest + a.q.size() - 1 - i;
      const int64_t from = std::max(a.from, -call_.past - lowest), to = std::min(a.to, call_.future - lowest + 1);
      low = std::max(low, from);
      high = std::min(high, to);
      if (low >= high) return false;
      trim(low, high, row);
      row.whole = from <= row.first - reach && to >= row.last + reach;
      if (!row.whole) {
        std::fill(room_.seen, room_.seen + s_.stride, T(0));
        std::fill(room_.seen + from, room_.seen + std::max(from, to), T(1));
      }
      return true;
    }
    trim(low, high, row);
    row.whole = false;
    bool any = false;
    std::fill(room_.seen, room_.seen + s_.stride, T(0));
    const uint8_t* shown = mask_ ? mask_.row(a.q.begin + i, a.k.begin, a.k.end) - a.from : nullptr;
    for (int64_t c = a.from; c < a.to; ++c) {
      if (!visible(i, c) || (shown != nullptr && !shown[c])) continue;
      room_.seen[c] = T(1);
      any |= c >= low && c < high;
      const int64_t entry = k_pos_[a.key + c] - q_pos_[a.q.begin + i] + call_.left;
      entry_[c] = std::min(std::max<int64_t>(entry, 0), call_.width - 1);
      room_.far[c] = T(entry - entry_[c]);
    }
    return any;
  }

  // The mixed scores of row i, in the room; `scores` are those of its first head, of which hidden ones become zero.
  void forward(int64_t i, const Row& row, T* scores) {
    const int64_t H = s_.heads, F = s_.hidden, head = s_.rows * s_.stride, reach = s_.reach;
    const int64_t begin = row.first - reach, end = row.last + reach;
    if (!row.whole)
      for (int64_t h = 0; h < H; ++h) mask_row(scores + h * head, room_.seen, begin - reach, end + reach + lanes, T(0));
    start(i, row);
    taps_of(scores_in_, scores, head, H, room_.near_scores, false);
    T* hidden = room_.hidden;
    const int64_t stride = s_.stride;
    product_of_rows<T>(
        F, s_.taps * H, shared_.first, scores_in_.data(), all_.data(), begin, end,
        [&](int64_t f, int64_t j, V x) { at::vec::clamp_min(x * V(T(SLOPE)), x).store(hidden + f * stride + j); });
    if (!row.whole && s_.taps > 1)
      for (int64_t f = 0; f < F; ++f) mask_row(hidden + f * stride, room_.seen, begin, end + lanes, T(0));
    taps_of(hidden_in_, static_cast<const T*>(hidden), stride, F, room_.near_hidden, false);
    for (int64_t h = 0; h < H; ++h) init_[h] = scores + h * head;
    T* mixed = room_.mixed;
    product_of_rows<T>(
        H, s_.taps * F, shared_.second, hidden_in_.data(), init_.data(), row.first, row.last,
        [&](int64_t h, int64_t j, V x) { (x + V::loadu(bias_[h] + j)).store(mixed + h * stride + j); });
    if (!row.whole)
      for (int64_t h = 0; h < H; ++h)
        mask_row(mixed + h * stride, room_.seen, row.first, row.last, -std::numeric_limits<T>::infinity());
  }

  // Turn the gradient of the row's mixed scores, in the room, into that of its scores, in place of these, and add those
  // of the network and the tables. After `forward` of the same row.
  void backward(int64_t i, const Row& row, T* scores, double* d_table, double* d_tails) {
    const int64_t H = s_.heads, F = s_.hidden, head = s_.rows * s_.stride, stride = s_.stride, reach = s_.reach;
    const int64_t begin = row.first - reach, end = row.last + reach;
    T *d_scores = room_.d_scores, *d_hidden = room_.d_hidden;
    const T *hidden = room_.hidden, *seen = room_.seen;
    const bool edge = !row.whole && s_.taps > 1;
    if (reach > 0)
      for (int64_t h = 0; h < H; ++h) clear_beside(d_scores + h * stride, row.first, row.last);
    // second
    for (int64_t h = 0; h < H; ++h) left_[h] = d_scores + h * stride;
    for (int64_t h = H; h < int64_t(left_.size()); ++h) left_[h] = zeros_.data();
    std::fill(hidden_in_.begin() + s_.taps * F, hidden_in_.end(), zeros_.data());
    products_of_pairs<T>(H, s_.taps * F, left_.data(), hidden_in_.data(), row.first, row.last, room_.d_second);
    taps_of(in_, static_cast<const T*>(d_scores), stride, H, room_.near_d_scores, true);
    product_of_rows<T>(
        F, s_.taps * H, shared_.second_back, in_.data(), nullptr, begin, end, [&](int64_t f, int64_t j, V x) {
          const V above = V::loadu(hidden + f * stride + j) > V(T(0));
          V::blendv(x * V(T(SLOPE)), x, above).store(d_hidden + f * stride + j);
        });
    if (edge)
      for (int64_t f = 0; f < F; ++f) mask_row(d_hidden + f * stride, seen, begin, end + lanes, T(0));
    if (reach > 0)
      for (int64_t f = 0; f < F; ++f) clear_beside(d_hidden + f * stride, begin, end);
    // first
    for (int64_t f = 0; f < F; ++f) left_[f] = d_hidden + f * stride;
    for (int64_t f = F; f < int64_t(left_.size()); ++f) left_[f] = zeros_.data();
    std::fill(scores_in_.begin() + s_.taps * H, scores_in_.end(), zeros_.data());
    products_of_pairs<T>(F, s_.taps * H, left_.data(), scores_in_.data(), begin, end, room_.d_first);
    if (++rows_ == SETTLE) settle();
    add_tables(i, row, d_table, d_tails);
    taps_of(in_, static_cast<const T*>(d_hidden), stride, F, room_.near_d_hidden, true);
    for (int64_t h = 0; h < H; ++h) init_[h] = d_scores + h * stride;
    const int64_t from = begin - reach, to = from + round_up(end + reach - from, lanes);
    product_of_rows<T>(
        H, s_.taps * F, shared_.first_back, in_.data(), init_.data(), from, to,
        [&](int64_t h, int64_t j, V x) { x.store(scores + h * head + j); });
    for (int64_t h = 0; h < H; ++h) {
      if (!row.whole) mask_row(scores + h * head, seen, from, to, T(0));
      clear_row(scores + h * head, from, to);
    }
  }

  // A row that sees nothing of the tile.
  void clear_row(T* row, int64_t from, int64_t to) const {
    std::fill(row, row + std::max<int64_t>(from, 0), T(0));
    std::fill(row + std::min(to, s_.stride), row + s_.stride, T(0));
  }

  // Add what the rows of all tiles gathered for the weights.
  void finish(double* d_first, double* d_second) const {
    const int64_t H = s_.heads, F = s_.hidden, taps = s_.taps;
    add_pairs<T>(F, taps * H, H * taps, [&](int64_t c) { return c % H * taps + c / H; }, room_.all_first, d_first);
    add_pairs<T>(H, taps * F, F * taps, [&](int64_t c) { return c % F * taps + c / F; }, room_.all_second, d_second);
  }

  // Add what the rows of a tile gathered by distance.
  void leave(double* d_table, double* d_tails, double* d_first_bias) {
    const int64_t H = s_.heads, F = s_.hidden, taps = s_.taps;
    settle();
    for (int64_t f = 0; f < F; ++f) {
      d_first_bias[f] += double(sum_of(V::loadu(room_.d_bias + f * lanes)));
      V(T(0)).store(room_.d_bias + f * lanes);
    }
    if (!area_.regular) return;
    const int64_t count = area_.q.size() - 1 + s_.stride, reach = s_.reach;
    for (int64_t f = 0; f < F; ++f) {
      T* total = room_.d_total + f * s_.line + reach;
      double sum = 0;
      for (int64_t u = 0; u < count; ++u) sum += double(total[u]);
      d_first_bias[f] += sum;
      for (int64_t t = 0; t < taps; ++t) add_row(room_.d_lines + (H + t * F + f) * s_.line + t, total, 0, count);
      std::fill(total, total + round_up(count, lanes), T(0));
    }
    const int64_t lowest = area_.lowest - reach + call_.left;  // entry of a line's first value
    const int64_t all = std::min(count + 2 * reach, s_.line);
    for (int64_t c = 0; c < s_.channels; ++c) {
      T* line = room_.d_lines + c * s_.line;
      double *to = d_table + c * call_.width, past = 0, future = 0;
      for (int64_t u = 0; u < all; ++u) {
        const int64_t entry = lowest + u, inside = std::min(std::max<int64_t>(entry, 0), call_.width - 1);
        to[inside] += double(line[u]);
        if (entry < inside) past += double(line[u]) * double(inside - entry);
        if (entry > inside) future += double(line[u]) * double(entry - inside);
      }
      d_tails[2 * c] += past;
      d_tails[2 * c + 1] += future;
      std::fill(line, line + s_.line, T(0));
    }
  }

 private:
  void settle() {
    rows_ = 0;
    const auto add = [](T* from, double* to, int64_t count) {
      for (int64_t i = 0; i < count; ++i) {
        to[i] += double(from[i]);
        from[i] = T(0);
      }
    };
    add(room_.d_first, room_.all_first, s_.pairs(s_.hidden, s_.heads));
    add(room_.d_second, room_.all_second, s_.pairs(s_.heads, s_.hidden));
  }

  static Span span(const int64_t* pos, const int64_t* docs, int64_t begin, int64_t end) {
    Span found = spans(pos + begin, docs == nullptr ? nullptr : docs + begin, end - begin, end - begin)[0];
    found.begin = begin;
    found.end = end;
    return found;
  }

  void trim(int64_t low, int64_t high, Row& row) const {
    row.first = s_.pad + (low - s_.pad) / lanes * lanes;
    row.last = s_.pad + round_up(high - s_.pad, lanes);
  }

  bool visible(int64_t i, int64_t c) const {
    const int64_t query = area_.q.begin + i, key = area_.key + c, apart = k_pos_[key] - q_pos_[query];
    return k_pos_[key] >= 0 && q_pos_[query] >= 0 && apart <= call_.future && apart >= -call_.past &&
           (q_docs_ == nullptr || q_docs_[query] == k_docs_[key]);
  }

  void clear_beside(T* row, int64_t begin, int64_t end) const {
    std::fill(row + begin - 2 * s_.reach, row + begin, T(0));
    std::fill(row + end, row + std::min(end + 2 * s_.reach + lanes, s_.stride), T(0));
  }

  // The columns of each column's neighbours, unless all lie beside each other.
  void neighbours() {
    Area& a = area_;
    a.beside = true;
    if (order_ == nullptr || s_.taps == 1) return;
    for (int64_t c = a.from; c < a.to; ++c)
      for (int64_t t = 0; t < s_.taps; ++t) {
        const int64_t key = a.key + c, wanted = order_[key] + t - s_.reach, beside = c + t - s_.reach;
        int64_t found = -1;
        for (int64_t n = std::max(a.from, c - s_.reach); n <= std::min(a.to - 1, c + s_.reach); ++n)
          if (order_[a.key + n] == wanted && k_pos_[a.key + n] >= 0 && k_pos_[key] >= 0) found = n;
        near_[t * s_.stride + c] = found;
        const bool hidden = beside < a.from || beside >= a.to || k_pos_[a.key + beside] < 0 || k_pos_[key] < 0;
        a.beside &= found == beside || (found < 0 && hidden);
      }
    if (a.beside) return;
    for (int64_t t = 0; t < s_.taps; ++t) {
      std::fill(near_.begin() + t * s_.stride, near_.begin() + t * s_.stride + a.from, -1);
      std::fill(near_.begin() + t * s_.stride + a.to, near_.begin() + (t + 1) * s_.stride, -1);
    }
  }

  // Pointers to `count` rows as each tap sees them; `back`: as it is seen by them.
  template <typename Pointers>
  void taps_of(Pointers& to, const T* from, int64_t apart, int64_t count, T* room, bool back) {
    for (int64_t t = 0; t < s_.taps; ++t) {
      const int64_t step = back ? s_.reach - t : t - s_.reach;
      const int64_t* near = near_.data() + (back ? s_.taps - 1 - t : t) * s_.stride;
      for (int64_t n = 0; n < count; ++n) {
        const T* row = from + n * apart;
        to[t * count + n] = row + step;
        if (area_.beside) continue;
        T* copy = room + (t * count + n) * s_.stride;
        for (int64_t c = 0; c < s_.stride; ++c) copy[c] = near[c] < 0 ? T(0) : row[near[c]];
        to[t * count + n] = copy;
      }
    }
  }

  // A table's value at each distance of the tile, and what a hidden unit starts with where all taps are visible.
  void fill_lines() {
    const int64_t count = area_.q.size() - 1 + s_.stride, reach = s_.reach;
    const int64_t lowest = area_.lowest - reach + call_.left;
    for (int64_t c = 0; c < s_.channels; ++c) {
      T* line = room_.lines + c * s_.line;
      const T *table = table_ + c * call_.width, past = tails_[2 * c], future = tails_[2 * c + 1];
      const int64_t all = std::min(count + 2 * reach, s_.line);
      const int64_t begin = std::min(std::max<int64_t>(-lowest, 0), all),
                    end = std::min(std::max(call_.width - lowest, begin), all);
      for (int64_t u = 0; u < begin; ++u) line[u] = table[0] + past * T(-lowest - u);
      std::copy(table + lowest + begin, table + lowest + end, line + begin);
      for (int64_t u = end; u < all; ++u) line[u] = table[call_.width - 1] + future * T(lowest + u - (call_.width - 1));
    }
    for (int64_t f = 0; f < s_.hidden; ++f) {
      T* total = room_.total + f * s_.line + reach;
      std::fill(total, total + count, first_bias_[f]);
      for (int64_t t = 0; t < s_.taps; ++t) {
        const T* line = room_.lines + (s_.heads + t * s_.hidden + f) * s_.line + t;
        for (int64_t u = 0; u < count; ++u) total[u] += line[u];
      }
    }
  }

  T value(int64_t channel, int64_t c) const {
    const T far = room_.far[c];
    return table_[channel * call_.width + entry_[c]] + std::abs(far) * tails_[2 * channel + (far > 0)];
  }

  // Set where the bias of each head and what each hidden unit starts with are.
  void start(int64_t i, const Row& row) {
    const Area& a = area_;
    const int64_t F = s_.hidden, H = s_.heads, reach = s_.reach, below = a.q.size() - 1 - i + reach;
    const int64_t begin = row.first - reach, end = row.last + reach;
    const T* seen = room_.seen;
    for (int64_t h = 0; h < H; ++h)
      bias_[h] = a.regular ? room_.lines + h * s_.line + below : room_.bias + h * s_.stride;
    const bool total = a.regular && (row.whole || s_.taps == 1) && a.beside;
    for (int64_t f = 0; f < F; ++f) all_[f] = total ? room_.total + f * s_.line + below : room_.plane + f * s_.stride;
    if (total) return;
    if (!a.regular)
      for (int64_t h = 0; h < H; ++h)
        for (int64_t c = row.first; c < row.last; ++c)
          room_.bias[h * s_.stride + c] = seen[c] == T(0) ? T(0) : value(h, c);
    for (int64_t f = 0; f < F; ++f) {
      T* plane = room_.plane + f * s_.stride;
      std::fill(plane + begin, plane + end + lanes, first_bias_[f]);
      for (int64_t t = 0; t < s_.taps; ++t) {
        const int64_t channel = H + t * F + f, step = t - reach;
        const T* line = room_.lines + channel * s_.line + below;
        if (a.regular && a.beside) {
          for (int64_t c = begin; c < end; ++c) plane[c] += seen[c + step] * line[c + step];
          continue;
        }
        for (int64_t c = begin; c < end; ++c) {
          const int64_t n = a.beside ? c + step : near_[t * s_.stride + c];
          if (n >= 0 && seen_at(row, n)) plane[c] += a.regular ? line[n] : value(channel, n);
        }
      }
    }
  }

  bool seen_at(const Row& row, int64_t c) const { return row.whole || room_.seen[c] != T(0); }

  // The reverse of `start`.
  void add_tables(int64_t i, const Row& row, double* d_table, double* d_tails) {
    const Area& a = area_;
    const int64_t F = s_.hidden, H = s_.heads, reach = s_.reach, below = a.q.size() - 1 - i + reach;
    const int64_t begin = row.first - reach, end = begin + round_up(row.last + reach - begin, lanes);
    const bool total = a.regular && (row.whole || s_.taps == 1) && a.beside;
    const auto add = [&](int64_t channel, int64_t c, T gradient) {
      const double far = double(room_.far[c]);
      d_table[channel * call_.width + entry_[c]] += double(gradient);
      d_tails[2 * channel + (far > 0)] += double(gradient) * std::abs(far);
    };
    for (int64_t h = 0; h < H; ++h) {
      const T* gradient = room_.d_scores + h * s_.stride;
      if (a.regular) {
        add_row(room_.d_lines + h * s_.line + below, gradient, row.first, row.last);
        continue;
      }
      for (int64_t c = row.first; c < row.last; ++c)
        if (seen_at(row, c)) add(h, c, gradient[c]);
    }
    for (int64_t f = 0; f < F; ++f) {
      const T* gradient = room_.d_hidden + f * s_.stride;
      if (total) {
        add_row(room_.d_total + f * s_.line + below, gradient, begin, end);
        continue;
      }
      V sum = V::loadu(room_.d_bias + f * lanes);
      for (int64_t c = begin; c < end; c += lanes) sum = sum + V::loadu(gradient + c);
      sum.store(room_.d_bias + f * lanes);
      for (int64_t t = 0; t < s_.taps; ++t) {
        const int64_t channel = H + t * F + f, step = t - reach;
        T* line = room_.d_lines + channel * s_.line + below;
        if (a.regular && a.beside) {
          for (int64_t c = begin; c < row.last + reach; ++c) line[c + step] += room_.seen[c + step] * gradient[c];
          continue;
        }
        for (int64_t c = begin; c < row.last + reach; ++c) {
          const int64_t n = a.beside ? c + step : near_[t * s_.stride + c];
          if (n < 0 || !seen_at(row, n)) continue;
          if (a.regular)
            line[n] += gradient[c];
          else
            add(channel, n, gradient[c]);
        }
      }
    }
  }

  const Call& call_;
  const Sizes<T>& s_;
  const Shared<T>& shared_;
  const Room<T>& room_;
  const int64_t *q_pos_, *k_pos_, *q_docs_, *k_docs_;
  const Mask mask_;
  const int64_t* order_;
  const T *table_, *tails_, *first_bias_;
  std::vector<T> zeros_;
  std::vector<int64_t> entry_, near_;
  std::vector<const T*> in_, hidden_in_, scores_in_, left_, init_, bias_, all_;
  Area area_{};
  int64_t rows_ = 0;  // since the gradients of weights were settled
};

// --------------------------------------------------------------------------------------------------------------- tasks

inline Dropout dropout_of(const Call& call, int64_t b, int64_t h) {
  headway::Call plain{};
  plain.heads = call.heads;
  plain.dropout = call.dropout;
  plain.seed = call.seed;
  return Dropout(plain, b, h);
}

template <typename T>
T* row_at(void* start, int64_t b, int64_t b_stride, int64_t h, int64_t h_stride, int64_t r, int64_t r_stride) {
  return static_cast<T*>(start) + b * b_stride + h * h_stride + r * r_stride;
}

// The tile's columns [begin, end) of rows (rows, width) times the panels of one head; zero where there is no key.
template <typename T>
void columns_of(
    const Call& call, const Area& a, int64_t begin, int64_t end, int64_t width, const T* rows, int64_t row,
    const std::vector<T>& panels, int64_t bh, T* to, int64_t stride) {
  const int64_t keys = round_up(call.keys, PANEL<T>), count = a.q.size();
  const int64_t from = std::max(begin, -a.key), last = std::max(from, std::min(end, keys - a.key));
  for (int64_t i = 0; i < count; ++i) {
    std::fill(to + i * stride + begin, to + i * stride + std::min(from, end), T(0));
    std::fill(to + i * stride + std::min(last, end), to + i * stride + end, T(0));
  }
  if (from < last)
    product<T>(
        count, last - from, width, rows, row, 1, panels.data() + (bh * keys + a.key + from) * width, PANEL<T>,
        width * PANEL<T>, to + from, stride, false);
}

template <typename T>
void scale_queries(const Call& call, int64_t b, int64_t begin, int64_t rows, int64_t most_rows, T* to) {
  for (int64_t h = 0; h < call.heads; ++h)
    pack<T, T>(
        to + h * most_rows * call.dim, call.dim, at_row<T>(call.q, b, call.q_batch, h, call.q_head, begin, call.q_row),
        call.q_row, rows, call.dim, T(call.scale));
}

template <typename T>
void forward(const Call& call) {
  using V = Vectorized<T>;
  constexpr int64_t lanes = LANES<T>;
  const Sizes<T> s(call);
  const Shared<T> shared(call, s, false);
  const bool few = call.decoding && call.queries <= FEW;  // backward must find the same scores
  const int64_t blocks = (call.queries + s.rows - 1) / s.rows, group = call.heads / call.kv_heads;
  const int64_t columns = s.columns(), head = s.rows * s.stride;
  run(call.batch * blocks, Room<T>(call, s, false, nullptr).bytes, [&](int64_t task, Scratch& scratch) {
    // the last queries see the most keys: they start first
    const int64_t b = task % call.batch, begin = (blocks - 1 - task / call.batch) * s.rows;
    const int64_t rows = std::min(s.rows, call.queries - begin);
    const Room<T> room(call, s, false, &scratch);
    Network<T> network(call, s, shared, room, b);
    std::vector<Dropout> dropout;
    for (int64_t h = 0; h < s.heads; ++h) dropout.push_back(dropout_of(call, b, h));
    std::fill(room.most, room.most + s.heads * s.rows, -std::numeric_limits<T>::infinity());
    scale_queries(call, b, begin, rows, s.rows, room.q);
    for (int64_t key = 0; key < call.keys; key += columns) {
      if (!network.enter(begin, rows, key)) continue;
      const Area& a = network.area();
      for (int64_t h = 0; h < s.heads; ++h) {
        T* to = room.scores + h * head;
        const T* q = room.q + h * s.rows * call.dim;
        if (few)
          products_of_few<T>(
              rows, a.to - a.from, call.dim, T(1), q, call.dim,
              at_row<T>(call.k, b, call.k_batch, h / group, call.k_head, a.key + a.from, call.k_row), call.k_row,
              to + a.from, s.stride);
        else
          columns_of(
              call, a, a.begin, a.end, call.dim, q, call.dim, shared.k, b * call.kv_heads + h / group, to, s.stride);
      }
      for (int64_t i = 0; i < rows; ++i) {
        Row row{};
        const bool some = network.look(i, row);
        if (some) network.forward(i, row, room.scores + i * s.stride);
        for (int64_t h = 0; h < s.heads; ++h) {
          const T* mixed = room.mixed + h * s.stride;
          T *weights = room.weights + (h * s.rows + i) * columns - s.pad, &most = room.most[h * s.rows + i];
          V best(-std::numeric_limits<T>::infinity());
          for (int64_t j = row.first; some && j < row.last; j += lanes)
            best = at::vec::clamp_min(V::loadu(mixed + j), best);
          const T now = std::max(most, max_of(best));
          if (!some || now == -std::numeric_limits<T>::infinity()) {
            std::fill(weights + s.pad, weights + s.pad + columns, T(0));
            continue;
          }
          const T shrink = most == now ? T(1) : std::exp(most - now);
          most = now;
          V total(T(0));
          std::fill(weights + s.pad, weights + row.first, T(0));
          for (int64_t j = row.first; j < row.last; j += lanes) {
            const V p = exp_negative(V::loadu(mixed + j) - V(now));
            p.store(weights + j);
            total = total + p;
          }
          std::fill(weights + row.last, weights + s.pad + columns, T(0));
          T& sum = room.sum[h * s.rows + i];
          sum = sum * shrink + sum_of(total);
          if (shrink != T(1)) {
            T* result = room.result + (h * s.rows + i) * call.dim_v;
            for (int64_t d = 0; d < call.dim_v; d += lanes) (V::loadu(result + d) * V(shrink)).store(result + d);
          }
          if (dropout[h].on) dropout[h].apply(weights + s.pad, begin + i, key, row.first - s.pad, row.last - s.pad);
        }
      }
      const int64_t first = a.first - s.pad, count = a.last - a.first;
      for (int64_t h = 0; h < s.heads; ++h)
        product<T>(
            rows, call.dim_v, count, room.weights + h * s.rows * columns + first, columns, 1,
            at_row<T>(call.v, b, call.v_batch, h / group, call.v_head, key + first, call.v_row), call.v_row, PANEL<T>,
            room.result + h * s.rows * call.dim_v, call.dim_v, true);
    }
    for (int64_t h = 0; h < s.heads; ++h)
      for (int64_t i = 0; i < rows; ++i) {
        const T sum = room.sum[h * s.rows + i], inverse = sum == T(0) ? T(0) : T(1) / sum;
        const T* result = room.result + (h * s.rows + i) * call.dim_v;
        T* out = row_at<T>(call.out, b, call.out_batch, h, call.out_head, begin + i, call.out_row);
        for (int64_t d = 0; d < call.dim_v; ++d) out[d] = result[d] * inverse;
        T* sums = static_cast<T*>(call.sums) + ((b * s.heads + h) * call.queries + begin + i) * 2;
        sums[0] = sum == T(0) ? T(0) : room.most[h * s.rows + i];
        sums[1] = inverse;
      }
  });
}

template <typename T>
void backward(const Call& call) {
  using V = Vectorized<T>;
  constexpr int64_t lanes = LANES<T>;
  const Sizes<T> s(call);
  const Shared<T> shared(call, s, true);
  const int64_t blocks = (call.queries + s.rows - 1) / s.rows, group = call.heads / call.kv_heads;
  const int64_t columns = s.columns(), head = s.rows * s.stride, H = s.heads, F = s.hidden;
  run(call.batch * call.splits, Room<T>(call, s, true, nullptr).bytes, [&](int64_t task, Scratch& scratch) {
    const int64_t split = task / call.batch, b = task % call.batch;
    const Room<T> room(call, s, true, &scratch);
    Network<T> network(call, s, shared, room, b);
    std::vector<Dropout> dropout;
    for (int64_t h = 0; h < H; ++h) dropout.push_back(dropout_of(call, b, h));
    double *d_table = call.d_table + task * s.channels * call.width, *d_tails = call.d_tails + task * s.channels * 2;
    const auto d_key = [&](void* start, int64_t width, int64_t h) {
      return static_cast<T*>(start) + (task * call.kv_heads + h / group) * call.keys * width;
    };
    for (int64_t block = blocks - 1 - split; block >= 0; block -= call.splits) {
      const int64_t begin = block * s.rows, rows = std::min(s.rows, call.queries - begin);
      scale_queries(call, b, begin, rows, s.rows, room.q);
      std::fill(room.d_q, room.d_q + H * s.rows * call.dim, T(0));
      int64_t tiles = 0;
      for (int64_t key = 0; key < call.keys; key += columns) tiles += network.find(begin, rows, key);
      for (int64_t h = 0; h < H; ++h)
        for (int64_t i = 0; i < rows; ++i) {
          const T* out = row_at<T>(call.out, b, call.out_batch, h, call.out_head, begin + i, call.out_row);
          const T* grad = at_row<T>(call.grad, b, call.grad_batch, h, call.grad_head, begin + i, call.grad_row);
          double mean = 0;
          for (int64_t d = 0; d < call.dim_v; ++d) mean += double(out[d]) * double(grad[d]);
          room.mean[h * s.rows + i] = T(mean);
        }
      for (int64_t key = 0; key < call.keys; key += columns) {
        if (!network.enter(begin, rows, key)) continue;
        const Area& a = network.area();
        for (int64_t h = 0; h < H; ++h) {
          const int64_t bh = b * call.kv_heads + h / group;
          columns_of(
              call, a, a.begin, a.end, call.dim, room.q + h * s.rows * call.dim, call.dim, shared.k, bh,
              room.scores + h * head, s.stride);
          // gradients of the weights, whose columns start at the tile's own first
          columns_of(
              call, a, a.first / PANEL<T> * PANEL<T>, std::min(s.pad + columns, round_up(a.last, PANEL<T>)), call.dim_v,
              at_row<T>(call.grad, b, call.grad_batch, h, call.grad_head, begin, call.grad_row), call.grad_row,
              shared.v, bh, room.weights + h * s.rows * columns - s.pad, columns);
        }
        for (int64_t i = 0; i < rows; ++i) {
          Row row{};
          T* scores = room.scores + i * s.stride;
          if (!network.look(i, row)) {
            for (int64_t h = 0; h < H; ++h) {
              network.clear_row(scores + h * head, 0, 0);
              std::fill_n(room.weights + (h * s.rows + i) * columns, columns, T(0));
            }
            continue;
          }
          network.forward(i, row, scores);
          for (int64_t h = 0; h < H; ++h) {
            const T* sums = static_cast<const T*>(call.sums) + ((b * H + h) * call.queries + begin + i) * 2;
            const T *mixed = room.mixed + h * s.stride, most = sums[0], inverse = sums[1];
            T *weights = room.weights + (h * s.rows + i) * columns - s.pad, *gradient = room.d_scores + h * s.stride;
            if (dropout[h].on) dropout[h].apply(weights + s.pad, begin + i, key, row.first - s.pad, row.last - s.pad);
            V mean(T(0));
            for (int64_t j = row.first; j < row.last; j += lanes) {
              const V p = exp_negative(V::loadu(mixed + j) - V(most)) * V(inverse), d = V::loadu(weights + j);
              mean = at::vec::fmadd(p, d, mean);
              p.store(weights + j);
              d.store(gradient + j);
            }
            // of a row that is whole the sum is exact where the scores' gradients cancel
            mean = V(tiles == 1 ? sum_of(mean) : room.mean[h * s.rows + i]);
            for (int64_t j = row.first; j < row.last; j += lanes)
              (V::loadu(weights + j) * (V::loadu(gradient + j) - mean)).store(gradient + j);
            std::fill(weights + s.pad, weights + row.first, T(0));
            std::fill(weights + row.last, weights + s.pad + columns, T(0));
            if (dropout[h].on) dropout[h].apply(weights + s.pad, begin + i, key, row.first - s.pad, row.last - s.pad);
          }
          network.backward(i, row, scores, d_table, d_tails);
        }
        network.leave(d_table, d_tails, call.d_first_bias + task * F);
        const int64_t first = a.first - s.pad, count = a.last - a.first;
        const int64_t from = std::max(a.from, a.first - 2 * s.reach),
                      near = std::min(a.to, a.last + 2 * s.reach) - from;
        for (int64_t h = 0; h < H; ++h) {
          const T* grad = at_row<T>(call.grad, b, call.grad_batch, h, call.grad_head, begin, call.grad_row);
          product<T>(
              count, call.dim_v, rows, room.weights + h * s.rows * columns + first, 1, columns, grad, call.grad_row,
              PANEL<T>, d_key(call.d_v, call.dim_v, h) + (key + first) * call.dim_v, call.dim_v, true);
          product<T>(
              near, call.dim, rows, room.scores + h * head + from, 1, s.stride, room.q + h * s.rows * call.dim,
              call.dim, PANEL<T>, d_key(call.d_k, call.dim, h) + (a.key + from) * call.dim, call.dim, true);
          product<T>(
              rows, call.dim, near, room.scores + h * head + from, s.stride, 1,
              at_row<T>(call.k, b, call.k_batch, h / group, call.k_head, a.key + from, call.k_row), call.k_row,
              PANEL<T>, room.d_q + h * s.rows * call.dim, call.dim, true);
        }
      }
      for (int64_t h = 0; h < H; ++h)
        for (int64_t i = 0; i < rows; ++i) {
          const T* from = room.d_q + (h * s.rows + i) * call.dim;
          T* to = static_cast<T*>(call.d_q) + ((b * H + h) * call.queries + begin + i) * call.dim;
          for (int64_t d = 0; d < call.dim; ++d) to[d] = from[d] * T(call.scale);
        }
    }
    network.finish(call.d_first + task * F * H * s.taps, call.d_second + task * H * F * s.taps);
  });
}

}  // namespace headway::mix

extern "C" int headway_mix_forward(const headway::mix::Call* call, int kind, char* message) {
  return headway::by_kind(kind == 3 ? 3 : 0, message, [&]<typename T, typename In>() {
    if constexpr (std::is_same_v<T, In>) headway::mix::forward<T>(*call);
  });
}

extern "C" int headway_mix_backward(const headway::mix::Call* call, int kind, char* message) {
  return headway::by_kind(kind == 3 ? 3 : 0, message, [&]<typename T, typename In>() {
    if constexpr (std::is_same_v<T, In>) headway::mix::backward<T>(*call);
  });
}

// Lets Python check that both sides have the same layout.
extern "C" int64_t mix_size() { return sizeof(headway::mix::Call); }
