// Attention whose weights depend on sums along the keys of each query, forward and backward, tile by tile.
//
//     stick:  weight_ij = σ(s_ij) · prod_{t > j} σ(−s_it)                s = scale q k
//     sums:   weight_ij = softmax_j(s_ij + c_ij), or s_ij + table_i(c_ij), c_ij = sum_{t > j, or t >= j} gate_it
//             gate = σ(s), or slope · log σ(left right)
//
// Forward goes from the last key to the first and keeps what each query's stick or sum is at the borders of blocks of
// keys. Backward starts each block from there and adds up gradients from the first key to the last: that of a gate is
// the sum of those of all keys before it. Queries lie in the lanes of vectors, so tiles are keys × queries.
#include "scan.h"

#include <numeric>

namespace headway::scan {

// Queries and keys of a tile, queries of a forward task, and keys between two looks at what is left of the sticks.
constexpr int64_t QUERIES = 96, KEYS = 256, TASK = 384, CHUNK = 64;
static_assert(TASK % QUERIES == 0);

template <typename T>
constexpr T INFINITE = std::numeric_limits<T>::infinity();

enum class Rule { STICK, COUNT, LOOKUP, LAST, PATH };  // LAST: a LOOKUP whose sums are all beyond the table

Rule rule_of(const Call& call) {
  if (call.stick) return Rule::STICK;
  if (call.table != nullptr) return Rule::LOOKUP;
  return call.left == nullptr ? Rule::COUNT : Rule::PATH;
}

// Run `work(side, lane)` for all lanes, `side` vectors at a time, so that one computes while the other waits.
template <typename T, typename Work>
void in_lanes(int64_t wide, const Work& work) {
  constexpr int64_t lanes = LANES<T>;
  int64_t x = 0;
  for (; x + 2 * lanes <= wide; x += 2 * lanes) work(std::integral_constant<int, 2>(), x);
  if (x < wide) work(std::integral_constant<int, 1>(), x);
}

// What all tasks of a call share: the spans of each sequence, and which weights are negligible: those that all together
// change a row by less than 1/256 of one rounding of the weights that are kept, even if its keys and values are the
// shortest.
template <typename T, typename In>
struct Shared {
  std::vector<std::vector<Span>> q, k;
  Shown shown;
  std::vector<std::vector<T>> longest_q, longest_k;  // per head and block; of keys, scaled, that block's and all before
  std::vector<T> negligible;  // per head: of a stick's rest, or of the logarithm of a weight; below it, stop

  explicit Shared(const Call& call)
      : longest_q(call.batch * call.heads),
        longest_k(call.batch * call.heads),
        negligible(call.batch * call.heads, call.stick ? (call.skip ? T(0) : T(-1)) : -INFINITE<T>) {
    const bool docs = call.q_docs != nullptr;
    for (int64_t b = 0; b < call.batch; ++b) {
      q.push_back(spans(
          call.q_pos + b * call.q_pos_batch, docs ? call.q_docs + b * call.q_docs_batch : nullptr, call.queries,
          QUERIES));
      k.push_back(spans(
          call.k_pos + b * call.k_pos_batch, docs ? call.k_docs + b * call.k_docs_batch : nullptr, call.keys, KEYS));
    }
    shown.measure(call, q, k);
    // in decoding, reading the keys and values for their norms would cost more than it saves
    if (!call.skip || (call.decoding && call.queries <= FEW) || !(call.stick || rule_of(call) == Rule::PATH)) return;
    at::parallel_for(0, call.batch * call.heads, 1, [&](int64_t begin, int64_t end) {
      for (int64_t bh = begin; bh < end; ++bh) measure(call, bh / call.heads, bh % call.heads);
    });
  }

  bool look(const Call& call, int64_t b, int64_t h, int64_t iq, int64_t ik, Tile& tile) const {
    return headway::look<T>(call, q[b][iq], k[b][ik], shown.of(b, h, iq, ik), tile);
  }

 private:
  void measure(const Call& call, int64_t b, int64_t h) {
    const int64_t bh = b * call.heads + h, h_kv = h / (call.heads / call.kv_heads);
    const int64_t* k_pos = call.k_pos + b * call.k_pos_batch;
    if (!call.stick && call.slope != nullptr && !(static_cast<const T*>(call.slope)[h] >= T(0))) return;
    const auto known = [](T x) { return x <= std::numeric_limits<T>::max() ? x : INFINITE<T>; };
    T shortest_k = INFINITE<T>, longest = 0, shortest_v = INFINITE<T>, longest_v = 0;
    for (const Span& span : k[b]) {
      for (int64_t j = span.begin; j < span.end; ++j) {
        if (k_pos[j] < 0) continue;
        const T key =
            squared_length<T>(at_row<In>(call.k, b, call.k_batch, h_kv, call.k_head, j, call.k_row), call.dim);
        const T value =
            squared_length<T>(at_row<In>(call.v, b, call.v_batch, h_kv, call.v_head, j, call.v_row), call.dim_v);
        longest = std::max(longest, known(key));
        shortest_k = std::min(shortest_k, key);
        longest_v = std::max(longest_v, known(value));
        shortest_v = std::min(shortest_v, value);
      }
      longest_k[bh].push_back(std::sqrt(longest) * std::abs(T(call.scale)));
    }
    for (const Span& span : q[b]) {
      T most = 0;
      for (int64_t i = span.begin; i < span.end; ++i)
        most = std::max(
            most,
            known(squared_length<T>(at_row<In>(call.q, b, call.q_batch, h, call.q_head, i, call.q_row), call.dim)));
      longest_q[bh].push_back(std::sqrt(most));
    }
    T spread = 0;
    if (longest > 0) spread += std::log(longest / shortest_k) / 2;
    if (longest_v > 0) spread += std::log(longest_v / shortest_v) / 2;
    const T least = std::log(std::numeric_limits<T>::epsilon() / 512) - spread;
    negligible[bh] = call.stick ? std::exp(least) : least - std::log(T(call.keys));
  }
};

// Queries or their gradients as one side of products with keys: transposed, or as they are if they are `few`.
template <typename T>
struct Panel {
  T* start;
  int64_t width, few;  // few: their number, or 0
};

// Rows (rows, width) times `scale` as a panel; `room` holds whole panels of rows.
template <typename T, typename In>
Panel<T> panel_of(
    T* to, const In* from, int64_t stride, int64_t rows, int64_t width, T scale, T* room, bool decoding = false) {
  const bool few = decoding && rows <= FEW;
  pack<T, In>(few ? to : room, width, from, stride, rows, width, scale);
  if (few) return {to, width, rows};
  std::fill(room + rows * width, room + round_up(rows, PANEL<T>) * width, T(0));
  transpose<T>(to, room, width, rows, width);
  return {to, width, 0};
}

template <typename T>
T dot(const T* one, const T* other, int64_t width) {
  Vectorized<T> sum(T(0));
  int64_t d = 0;
  for (; d + LANES<T> <= width; d += LANES<T>)
    sum = at::vec::fmadd(Vectorized<T>::loadu(one + d), Vectorized<T>::loadu(other + d), sum);
  T total = sum_of(sum);
  for (; d < width; ++d) total += one[d] * other[d];
  return total;
}

// Products of keys [first, last) of a tile, rows of `keys`, with the queries of a panel.
template <typename T>
void score(Rows<T> keys, Panel<T> panel, int64_t first, int64_t last, int64_t wide, T* to, int64_t stride) {
  if (panel.few == 0)
    return product<T>(
        last - first, wide, panel.width, keys.start + first * keys.stride, keys.stride, 1, panel.start, PANEL<T>,
        panel.width * PANEL<T>, to + first * stride, stride, false);
  for (int64_t j = first; j < last; ++j) {
    T* row = to + j * stride;
    for (int64_t i = 0; i < panel.few; ++i)
      row[i] = dot(keys.start + j * keys.stride, panel.start + i * panel.width, panel.width);
    std::fill(row + panel.few, row + wide, T(0));
  }
}

// What a block of queries holds per lane: its stick or sum, and in forward its greatest score and sum of exponentials.
template <typename T>
struct State {
  T *ahead, *low, *most, *total;

  State(Scratch& room, int64_t lanes)
      : ahead(room.take<T>(lanes)), low(room.take<T>(lanes)), most(room.take<T>(lanes)), total(room.take<T>(lanes)) {}
};

// ------------------------------------------------------------------------------------------------------------ sticks

// Keys [first, last): scores to weights. `shares` gets each key's packed share, if not null.
template <typename T>
void break_off(T* scores, T* shares, int64_t stride, int64_t first, int64_t last, int64_t wide, const State<T>& state) {
  using V = Vectorized<T>;
  constexpr int64_t lanes = LANES<T>;
  in_lanes<T>(wide, [&](auto side, int64_t x) {
    Stick<T> stick[side];
    for (int n = 0; n < side; ++n) stick[n] = Stick<T>::load(state.ahead + x + n * lanes, state.low + x + n * lanes);
    for (int64_t j = last; j-- > first;)
      for (int n = 0; n < side; ++n) {
        const int64_t at = j * stride + x + n * lanes;
        const Sigmoid<T> share(V::loadu(scores + at));
        stick[n].take(share).store(scores + at);
        if (shares != nullptr) share.packed().store(shares + at);
      }
    for (int n = 0; n < side; ++n) stick[n].store(state.ahead + x + n * lanes, state.low + x + n * lanes);
  });
}

// A tile's weights, in chunks of keys from the right, until what is left of all sticks is negligible. Returns the first
// key with weights.
template <typename T>
int64_t weigh(
    const Tile& tile, const Hidden<T>& hidden, Rows<T> keys, Panel<T> panel, int64_t wide, T* scores, T* shares,
    int64_t stride, const State<T>& state, T negligible) {
  int64_t first = tile.last;
  while (first > tile.first) {
    const int64_t begin = std::max(tile.first, first - CHUNK);
    score<T>(keys, panel, begin, first, wide, scores, stride);
    hidden.fill(tile, begin, first, scores, stride, -INFINITE<T>);
    break_off<T>(scores, shares, stride, begin, first, wide, state);
    first = begin;
    if (*std::max_element(state.ahead, state.ahead + tile.rows()) <= negligible) break;
  }
  return first;
}

// Keys [first, last): gradients of weights to those of scores, times `scale`. `state` sums up weight · gradient.
template <typename T>
void differentiate_shares(
    const T* weights, const T* shares, T* gradients, int64_t stride, int64_t first, int64_t last, int64_t wide, T scale,
    const State<T>& state) {
  using V = Vectorized<T>;
  constexpr int64_t lanes = LANES<T>;
  in_lanes<T>(wide, [&](auto side, int64_t x) {
    Sum<T> sum[side];
    for (int n = 0; n < side; ++n) sum[n] = Sum<T>::load(state.ahead + x + n * lanes, state.low + x + n * lanes);
    for (int64_t j = first; j < last; ++j)
      for (int n = 0; n < side; ++n) {
        const int64_t at = j * stride + x + n * lanes;
        V share, other;
        Sigmoid<T>::unpack(V::loadu(shares + at), share, other);
        const V own = V::loadu(weights + at) * V::loadu(gradients + at);
        ((own * other - share * sum[n].high) * V(scale)).store(gradients + at);
        sum[n].add(own);
      }
    for (int n = 0; n < side; ++n) sum[n].store(state.ahead + x + n * lanes, state.low + x + n * lanes);
  });
}

// -------------------------------------------------------------------------------------------------------------- sums

// A tile of keys × queries: scores, and for PATH what its gates are the log σ of.
template <typename T>
struct Sheet {
  T *scores, *gates;
  int64_t stride, first, last, wide;
};

// The tables of a block of queries.
template <typename T>
class Lookup {
 public:
  using V = Vectorized<T>;
  using Integer = at::vec::int_same_size_t<T>;

  Lookup(const Call& call, int64_t lanes, Scratch& room)
      : call_(call), offsets_(room.take<Integer>(lanes)), last_(room.take<T>(lanes)), lanes_(lanes) {}

  void enter(int64_t b, int64_t h, const Span& q) {
    start_ = at_row<T>(call_.table, b, call_.table_batch, h, call_.table_head, q.begin, call_.table_row);
    for (int64_t i = 0; i < lanes_; ++i) {
      offsets_[i] = std::min(i, q.size() - 1) * call_.table_row;
      last_[i] = start_[offsets_[i] + call_.width - 1];
    }
  }
  V last(int64_t lane) const { return V::loadu(last_ + lane); }
  // The entries below and above a count.
  void around(int64_t lane, V count, V& below, V& above) const {
    const auto row = Vectorized<Integer>::loadu(offsets_ + lane);
    const auto entry = [&](V x) {  // NaN is no entry
      return at::vec::gather<sizeof(T)>(
          start_, row + at::vec::convert_to_int_of_same_size(V::blendv(V(T(0)), x, x >= V(T(0)))));
    };
    below = entry(count.floor());
    above = entry(count.ceil());
  }

 private:
  const Call& call_;
  const T* start_ = nullptr;
  Integer* offsets_;
  T* last_;
  int64_t lanes_;
};

// What backward needs of a tile's sums, for two vectors of lanes.
template <typename T>
struct Kept {
  T *slopes, *steps, *counts;  // gradients of gates, those of what is looked up, and what is looked up at
  static int64_t at(int64_t j, int n) { return (2 * j + n) * LANES<T>; }
};

// Adds to the scores of `SIDE` vectors of queries the sums, or what they look up, and finds each lane's greatest.
template <Rule RULE, int SIDE, typename T>
void add_sums(
    const Call& call, const Sheet<T>& tile, const Lookup<T>& table, T slope, int64_t x, const State<T>& state,
    const Kept<T>* kept, Vectorized<T>* best) {
  using V = Vectorized<T>;
  constexpr int64_t lanes = LANES<T>;
  for (int n = 0; n < SIDE; ++n) best[n] = V(-INFINITE<T>);
  if constexpr (RULE == Rule::LAST) {
    for (int64_t j = tile.last; j-- > tile.first;)
      for (int n = 0; n < SIDE; ++n) {
        T* score = tile.scores + j * tile.stride + x + n * lanes;
        const V value = V::loadu(score) + table.last(x + n * lanes);
        value.store(score);
        best[n] = at::vec::clamp_min(value, best[n]);
      }
    return;
  }
  Sum<T> sum[SIDE];
  for (int n = 0; n < SIDE; ++n) sum[n] = Sum<T>::load(state.ahead + x + n * lanes, state.low + x + n * lanes);
  for (int64_t j = tile.last; j-- > tile.first;)
    for (int n = 0; n < SIDE; ++n) {
      const int64_t at = j * tile.stride + x + n * lanes;
      V value = V::loadu(tile.scores + at), gate;
      if constexpr (RULE == Rule::PATH) {
        const V z = V::loadu(tile.gates + at), e = exp_negative(z.abs().neg());
        const V log = at::vec::clamp_max(z, V(T(0))) - log_of_one_plus(e);
        gate = log * V(slope);
        if (kept != nullptr) {
          const V large = V(T(1)) / (V(T(1)) + e);
          (V::blendv(e * large, large, z < V(T(0))) * V(slope)).store(tile.gates + at);
          log.store(kept->counts + Kept<T>::at(j, n));
        }
      } else {
        const Sigmoid<T> share(value);
        gate = share.value();
        if (kept != nullptr) share.slope().store(kept->slopes + Kept<T>::at(j, n));
      }
      if (call.inclusive) sum[n].add(gate);
      V count = sum[n].high;
      if (!call.inclusive) sum[n].add(gate);
      if constexpr (RULE == Rule::LOOKUP) {
        count = at::vec::clamp_max(count, V(T(call.width - 1)));
        V below, above;
        table.around(x + n * lanes, count, below, above);
        value = value + at::vec::fmadd(above - below, count - count.floor(), below);
        if (kept != nullptr) {
          (above - below).store(kept->steps + Kept<T>::at(j, n));
          count.store(kept->counts + Kept<T>::at(j, n));
        }
      } else {
        value = value + count;
      }
      value.store(tile.scores + at);
      best[n] = at::vec::clamp_min(value, best[n]);
    }
  for (int n = 0; n < SIDE; ++n) sum[n].store(state.ahead + x + n * lanes, state.low + x + n * lanes);
}

// Number of keys whose exponentials are summed sequentially.
constexpr int64_t PART = 32;

// A tile's scores to exp(score - greatest). Earlier results of a query must be multiplied by its `shrink`.
template <Rule RULE, typename T>
void soften(const Call& call, const Sheet<T>& tile, const Lookup<T>& table, T slope, const State<T>& state, T* shrink) {
  using V = Vectorized<T>;
  constexpr int64_t lanes = LANES<T>;
  in_lanes<T>(tile.wide, [&](auto side, int64_t x) {
    V best[side];
    add_sums<RULE, side, T>(call, tile, table, slope, x, state, nullptr, best);
    for (int n = 0; n < side; ++n) {
      const int64_t lane = x + n * lanes;
      const V before = V::loadu(state.most + lane), now = at::vec::clamp_min(best[n], before);
      const V shift = V::blendv(now, V(T(0)), now == V(-INFINITE<T>));  // fully masked so far
      const V factor = exp_negative(before - shift);
      V total = V::loadu(state.total + lane) * factor;
      for (int64_t from = tile.first; from < tile.last; from += PART) {
        V part(T(0));
        for (int64_t j = from; j < std::min(from + PART, tile.last); ++j) {
          T* score = tile.scores + j * tile.stride + lane;
          const V weight = exp_negative(V::loadu(score) - shift);
          weight.store(score);
          part = part + weight;
        }
        total = total + part;
      }
      now.store(state.most + lane);
      total.store(state.total + lane);
      factor.store(shrink + lane);
    }
  });
}

// What backward knows of a block's queries, per lane: exp(score - most) · inverse is a weight, `mean` the mean of the
// gradients of its weights, or not yet if all its keys are in this tile: then it is computed from the same values it is
// subtracted from, so that rounding errors cancel.
template <typename T>
struct Softmax {
  T *most, *inverse, *mean;
  bool whole;
};

// Where a block's gradients of tables and slopes go; may be null.
template <typename T>
struct Targets {
  T* table;  // (rows, W)
  int64_t rows;
  double* slope;
};

// A tile's scores to weights, gradients of weights to those of scores, times `scale`, and gates to their gradients.
// `forth` is what the sums start from, `back` sums up their gradients.
template <Rule RULE, typename T>
void differentiate_sums(
    const Call& call, const Sheet<T>& tile, T* gradients, const Lookup<T>& table, T slope, const State<T>& forth,
    const State<T>& back, const Softmax<T>& softmax, const Kept<T>& kept, const Targets<T>& to) {
  using V = Vectorized<T>;
  constexpr int64_t lanes = LANES<T>;
  const V scale(T(call.scale)), end(T(call.width - 1));
  in_lanes<T>(tile.wide, [&](auto side, int64_t x) {
    V best[side];
    add_sums<RULE, side, T>(call, tile, table, slope, x, forth, &kept, best);
    V mean[side], tail[side];
    Sum<T> sum[side], of_slope[side];
    for (int n = 0; n < side; ++n) {
      const int64_t lane = x + n * lanes;
      const V most = V::loadu(softmax.most + lane), inverse = V::loadu(softmax.inverse + lane);
      V own(T(0));
      for (int64_t from = tile.first; from < tile.last; from += PART) {
        V part(T(0));
        for (int64_t j = from; j < std::min(from + PART, tile.last); ++j) {
          T* score = tile.scores + j * tile.stride + lane;
          const V weight = exp_negative(V::loadu(score) - most) * inverse;
          weight.store(score);
          if (softmax.whole) part = at::vec::fmadd(weight, V::loadu(gradients + j * tile.stride + lane), part);
        }
        own = own + part;
      }
      mean[n] = softmax.whole ? own : V::loadu(softmax.mean + lane);
      sum[n] = Sum<T>::load(back.ahead + lane, back.low + lane);
      of_slope[n] = {V(T(0)), V(T(0))};
      tail[n] = V(T(0));
    }
    for (int64_t j = tile.first; j < tile.last; ++j)
      for (int n = 0; n < side; ++n) {
        const int64_t at = j * tile.stride + x + n * lanes, small = Kept<T>::at(j, n);
        const V of_score = V::loadu(tile.scores + at) * (V::loadu(gradients + at) - mean[n]);
        V result = of_score;
        if constexpr (RULE == Rule::LAST) {
          tail[n] = tail[n] + of_score;
        } else {
          const V own = RULE == Rule::LOOKUP ? of_score * V::loadu(kept.steps + small) : of_score;
          if (call.inclusive) sum[n].add(own);
          const V of_gate = sum[n].high;
          if (!call.inclusive) sum[n].add(own);
          if constexpr (RULE == Rule::PATH) {
            if (to.slope != nullptr) of_slope[n].add(of_gate * V::loadu(kept.counts + small));
            (of_gate * V::loadu(tile.gates + at)).store(tile.gates + at);
          } else {
            result = at::vec::fmadd(of_gate, V::loadu(kept.slopes + small), result);
          }
          if (RULE == Rule::LOOKUP && to.table != nullptr) {
            const V count = V::loadu(kept.counts + small);
            tail[n] = tail[n] + V::blendv(V(T(0)), of_score, count >= end);
            of_score.store(kept.steps + small);
            for (int64_t i = 0; i < std::min(lanes, to.rows - x - n * lanes); ++i) {
              const T where = kept.counts[small + i];
              if (!(where < T(call.width - 1))) continue;
              T* row = to.table + (x + n * lanes + i) * call.width;
              const int64_t below = where >= T(0) ? int64_t(where) : 0;
              const T above = kept.steps[small + i] * (where - T(below));
              row[below] += kept.steps[small + i] - above;
              row[below + 1] += above;
            }
          }
        }
        (result * scale).store(gradients + at);
      }
    for (int n = 0; n < side; ++n) {
      const int64_t lane = x + n * lanes;
      sum[n].store(back.ahead + lane, back.low + lane);
      T value[lanes];
      if (to.table != nullptr) {
        tail[n].store(value);
        for (int64_t i = 0; i < std::min(lanes, to.rows - lane); ++i)
          to.table[(lane + i) * call.width + call.width - 1] += value[i];
      }
      if (RULE == Rule::PATH && to.slope != nullptr) {
        of_slope[n].high.store(value);
        for (int64_t i = 0; i < std::min(lanes, to.rows - lane); ++i) *to.slope += double(value[i]);
      }
    }
  });
}

// Call `work.operator()<RULE>()` for the rule that adds sums; LAST where the table's last entry serves all queries.
template <typename Work>
void by_rule(Rule rule, const Work& work) {
  switch (rule) {
    case Rule::COUNT:
      return work.template operator()<Rule::COUNT>();
    case Rule::LOOKUP:
      return work.template operator()<Rule::LOOKUP>();
    case Rule::LAST:
      return work.template operator()<Rule::LAST>();
    default:
      return work.template operator()<Rule::PATH>();
  }
}

// The rule for a tile: a table whose end all queries have passed needs no counting.
template <typename T>
Rule rule_at(const Call& call, const T* ahead, int64_t rows) {
  const Rule rule = rule_of(call);
  if (rule != Rule::LOOKUP) return rule;
  const T* least = std::min_element(ahead, ahead + rows);
  return *least >= T(call.width - 1) ? Rule::LAST : rule;
}

// ----------------------------------------------------------------------------------------------------------- forward

template <typename T, typename In>
void forward(const Call& call) {
  const Shared<T, In> shared(call);
  const int64_t wide_v = round_up(call.dim_v, LANES<T>), group = call.heads / call.kv_heads;
  const int64_t per_head = (call.queries + TASK - 1) / TASK, rank = call.left == nullptr ? 0 : call.rank;
  const int64_t block = std::min(QUERIES, call.queries), lanes = round_up(block, PANEL<T>), some = TASK / QUERIES,
                columns = std::min(KEYS, call.keys), tile_blocks = (call.keys + KEYS - 1) / KEYS;
  const size_t bytes = sizeof(T) * (some * (lanes * (call.dim + rank + 4) + block * wide_v) +
                                    columns * (call.dim + wide_v + 2 * lanes) + lanes * (call.dim + rank + 4)) +
                       64 * 64;
  std::atomic<int64_t> computed{0}, skipped{0};

  run(call.batch * call.heads * per_head, bytes, [&](int64_t task, Scratch& room) {
    const int64_t bh = task / per_head, b = bh / call.heads, h = bh % call.heads, h_kv = h / group;
    // the last queries see the most keys: they start first, so that no long task is left for the end
    const int64_t begin = (per_head - 1 - task % per_head) * TASK, end = std::min(call.queries, begin + TASK);
    const std::vector<Span>&q_spans = shared.q[b], &k_spans = shared.k[b];
    const Hidden<T> hidden(call, b, h);
    const Dropout dropout(call, b, h);
    const T slope = call.slope == nullptr ? T(1) : static_cast<const T*>(call.slope)[h],
            negligible = shared.negligible[bh];
    T* const borders =
        call.borders == nullptr ? nullptr : static_cast<T*>(call.borders) + bh * 2 * tile_blocks * call.queries;
    T *k_room = room.take<T>(columns * call.dim), *v_room = room.take<T>(columns * wide_v);
    T *scores = room.take<T>(columns * lanes), *gates = room.take<T>(columns * lanes);
    T *panel_room = room.take<T>(lanes * std::max(call.dim, rank)), *shrink = room.take<T>(lanes);
    uint32_t* starts = room.take<uint32_t>(lanes);
    Lookup<T> table(call, lanes, room);
    std::vector<State<T>> states;
    std::vector<Panel<T>> panels, left_panels;
    std::vector<T*> sums;
    std::vector<char> done;
    for (int64_t iq = begin / QUERIES; iq * QUERIES < end; ++iq) {
      const Span& q = q_spans[iq];
      const State<T>& state = states.emplace_back(room, lanes);
      std::fill(state.ahead, state.ahead + lanes, T(0));
      std::fill(state.low, state.low + lanes, T(0));
      std::fill(state.most, state.most + lanes, -INFINITE<T>);
      std::fill(state.total, state.total + lanes, T(0));
      for (int64_t i = 0; i < q.size(); ++i) {
        const bool padding = hidden.padding(q.begin + i);  // it needs no counting
        state.ahead[i] = call.stick ? T(!padding) : padding && call.table != nullptr ? T(call.width - 1) : T(0);
      }
      panels.push_back(
          panel_of<T, In>(
              room.take<T>(lanes * call.dim), at_row<In>(call.q, b, call.q_batch, h, call.q_head, q.begin, call.q_row),
              call.q_row, q.size(), call.dim, T(call.scale), panel_room, call.decoding));
      if (rank > 0)
        left_panels.push_back(
            panel_of<T, T>(
                room.take<T>(lanes * rank),
                at_row<T>(call.left, b, call.left_batch, h, call.left_head, q.begin, call.left_row), call.left_row,
                q.size(), rank, T(1), panel_room, call.decoding));
      sums.push_back(room.take<T>(block * wide_v));
      std::fill_n(sums.back(), block * wide_v, T(0));
      done.push_back(0);
    }

    for (int64_t ik = tile_blocks - 1; ik >= 0; --ik) {
      const Span& keys = k_spans[ik];
      bool packed = false;
      Rows<T> k{}, v{};
      for (size_t r = 0; r < states.size(); ++r) {
        const int64_t iq = begin / QUERIES + r;
        const State<T>& state = states[r];
        Tile tile;
        if (!shared.look(call, b, h, iq, ik, tile)) continue;
        const int64_t rows = tile.rows(), wide = round_up(rows, LANES<T>);
        T* border = borders == nullptr ? nullptr : borders + ik * call.queries + tile.q->begin;
        if (!done[r]) {
          T most = -INFINITE<T>;
          for (int64_t i = 0; i < rows; ++i)
            if (!hidden.padding(tile.q->begin + i))
              most = std::max(most, call.stick ? state.ahead[i] : state.ahead[i] - state.most[i]);
          if (!call.stick && !shared.longest_k[bh].empty()) most += shared.longest_q[bh][iq] * shared.longest_k[bh][ik];
          done[r] = call.stick ? most <= negligible : most < negligible;
        }
        if (done[r]) {
          skipped.fetch_add(1, std::memory_order_relaxed);
          if (border != nullptr) std::fill(border, border + rows, -INFINITE<T>);
          continue;
        }
        computed.fetch_add(1, std::memory_order_relaxed);
        if (border != nullptr) {
          std::copy_n(state.ahead, rows, border);
          std::copy_n(state.low, rows, border + tile_blocks * call.queries);
        }
        if (!packed) {
          packed = true;
          k = rows_of<T>(
              at_row<In>(call.k, b, call.k_batch, h_kv, call.k_head, keys.begin, call.k_row), call.k_row, keys.size(),
              call.dim, call.dim, k_room);
          v = rows_of<T>(
              at_row<In>(call.v, b, call.v_batch, h_kv, call.v_head, keys.begin, call.v_row), call.v_row, keys.size(),
              call.dim_v, wide_v, v_room);
        }
        int64_t first = tile.first;
        if (call.stick) {
          first = weigh<T>(tile, hidden, k, panels[r], wide, scores, nullptr, lanes, state, negligible);
        } else {
          score<T>(k, panels[r], first, tile.last, wide, scores, lanes);
          hidden.fill(tile, first, tile.last, scores, lanes, -INFINITE<T>);
          const Sheet<T> sheet{scores, gates, lanes, first, tile.last, wide};
          if (rank > 0) {
            const T* right = at_row<T>(call.right, b, call.right_batch, h, call.right_head, keys.begin, call.right_row);
            score<T>({right, call.right_row}, left_panels[r], first, tile.last, wide, gates, lanes);
            hidden.fill(tile, first, tile.last, gates, lanes, INFINITE<T>);
          }
          if (call.table != nullptr) table.enter(b, h, *tile.q);
          by_rule(rule_at(call, state.ahead, rows), [&]<Rule RULE>() {
            soften<RULE>(call, sheet, table, slope, state, shrink);
          });
          for (int64_t i = 0; i < rows; ++i) {
            T* sum = sums[r] + i * wide_v;
            if (shrink[i] != T(1))
              for (int64_t d = 0; d < wide_v; ++d) sum[d] *= shrink[i];
          }
        }
        if (dropout.on) {
          for (int64_t i = 0; i < rows; ++i) starts[i] = dropout.start(tile.q->begin + i);
          for (int64_t j = first; j < tile.last; ++j) dropout.apply(scores + j * lanes, starts, rows, keys.begin + j);
        }
        product<T>(
            rows, wide_v, tile.last - first, scores + first * lanes, 1, lanes, v.start + first * v.stride, v.stride,
            PANEL<T>, sums[r], wide_v, true);
      }
    }

    T* kept = static_cast<T*>(call.sums) + bh * 2 * call.queries;
    for (size_t r = 0; r < states.size(); ++r) {
      const Span& q = q_spans[begin / QUERIES + r];
      for (int64_t i = 0; i < q.size(); ++i) {
        const int64_t query = q.begin + i, own = call.keys - call.queries + query;
        const T ahead = states[r].ahead[i], most = states[r].most[i], total = states[r].total[i];
        T *sum = sums[r] + i * wide_v, inverse = T(1), rest = T(0);
        if (call.remainder && hidden.own(query, own)) {
          rest = ahead;
          const uint32_t start = dropout.on ? dropout.start(query) : 0;
          if (dropout.on) dropout.apply(&rest, &start, 1, own);
          const In* value = at_row<In>(call.v, b, call.v_batch, h_kv, call.v_head, own, call.v_row);
          for (int64_t d = 0; d < call.dim_v; ++d) sum[d] += rest * static_cast<T>(value[d]);
        }
        if (!call.stick) {
          const bool seen = total > T(0) || std::isnan(total);
          inverse = seen ? T(1) / total : T(0);
          kept[query] = seen ? most : T(0);
        }
        kept[call.queries + query] = call.stick ? rest : inverse;
        In* out = const_cast<In*>(at_row<In>(call.out, b, call.out_batch, h, call.out_head, query, call.out_row));
        for (int64_t d = 0; d < call.dim_v; ++d) out[d] = static_cast<In>(sum[d] * inverse);
        if (call.exact == nullptr) continue;
        T* exact = static_cast<T*>(call.exact) + (bh * call.queries + query) * call.dim_v;
        for (int64_t d = 0; d < call.dim_v; ++d) exact[d] = sum[d] * inverse;
      }
    }
  });
  if (call.tiles != nullptr) {
    call.tiles[0] += computed;
    call.tiles[1] += skipped;
  }
}

// ---------------------------------------------------------------------------------------------------------- backward

// sum_j weight_ij (d_out_i v_j) = d_out_i out_i for the queries of a head. Several at a time, since each sum waits for
// its last term.
template <typename T, typename In, typename Out>
void means_of(const Call& call, int64_t bh, const Out* out, int64_t out_row, T* to) {
  constexpr int64_t some = 8;
  const int64_t b = bh / call.heads, h = bh % call.heads;
  for (int64_t i = 0; i < call.queries; i += some, out += some * out_row) {
    const int64_t rows = std::min(some, call.queries - i);
    const In* grad = at_row<In>(call.grad, b, call.grad_batch, h, call.grad_head, i, call.grad_row);
    double mean[some] = {};
    for (int64_t d = 0; d < call.dim_v; ++d)
      for (int64_t r = 0; r < rows; ++r) mean[r] += double(grad[r * call.grad_row + d]) * double(out[r * out_row + d]);
    for (int64_t r = 0; r < rows; ++r) to[i + r] = T(mean[r]);
  }
}

template <typename T, typename In>
void backward(const Call& call) {
  const Shared<T, In> shared(call);
  const int64_t wide_d = round_up(call.dim, LANES<T>), wide_v = round_up(call.dim_v, LANES<T>);
  const int64_t group = call.heads / call.kv_heads, rank = call.left == nullptr ? 0 : call.rank,
                wide_r = round_up(rank, LANES<T>);
  const int64_t block = std::min(QUERIES, call.queries), lanes = round_up(block, PANEL<T>),
                columns = std::min(KEYS, call.keys);
  const size_t bytes =
      sizeof(T) * (lanes * (2 * call.dim + 2 * call.dim_v + 2 * rank + 16) + block * (wide_d + wide_v + wide_r) +
                   columns * (2 * wide_d + 2 * wide_v + wide_r) + columns * (3 * lanes + 6 * LANES<T>)) +
      64 * 64;
  const T scale = T(call.scale);

  // how many blocks of keys a block of queries sees, and the means of the gradients of its weights
  const std::vector<std::vector<int64_t>> blocks = blocks_seen(call, shared);
  std::vector<T> means(call.stick ? 0 : call.batch * call.heads * call.queries);
  if (!call.stick)
    at::parallel_for(0, call.batch * call.heads, 1, [&](int64_t begin, int64_t end) {
      for (int64_t bh = begin; bh < end; ++bh) {
        T* to = means.data() + bh * call.queries;
        if (call.exact == nullptr)
          means_of<T, In>(
              call, bh, at_row<In>(call.out, bh / call.heads, call.out_batch, bh % call.heads, call.out_head, 0, 0),
              call.out_row, to);
        else
          means_of<T, In>(call, bh, static_cast<const T*>(call.exact) + bh * call.queries * call.dim_v, call.dim_v, to);
      }
    });

  // the longest tasks start first, so that none is left for the end
  const int64_t tasks = call.batch * call.kv_heads * call.splits, some_blocks = (call.keys + KEYS - 1) / KEYS;
  const auto border_of = [&](int64_t bh, int64_t ik, int64_t query) {
    return static_cast<const T*>(call.borders) + (2 * bh * some_blocks + ik) * call.queries + query;
  };
  std::vector<int64_t> order(tasks), length(tasks, 0);
  std::iota(order.begin(), order.end(), 0);
  for (int64_t bh = 0; bh < call.batch * call.heads; ++bh)
    for (int64_t iq = 0; iq < int64_t(shared.q[bh / call.heads].size()); ++iq)
      for (int64_t ik = 0; ik < some_blocks; ++ik) {
        const int64_t b = bh / call.heads;
        Tile tile;
        if (shared.look(call, b, bh % call.heads, iq, ik, tile) &&
            *border_of(bh, ik, shared.q[b][iq].begin) != -INFINITE<T>)
          length[bh / group * call.splits + iq % call.splits] += tile.rows() * (tile.last - tile.first);
      }
  std::stable_sort(order.begin(), order.end(), [&](int64_t one, int64_t other) { return length[one] > length[other]; });
  std::atomic<int64_t> computed{0};
  run(tasks, bytes, [&](int64_t turn, Scratch& room) {
    const int64_t task = order[turn];
    const int64_t split = task % call.splits, h_kv = task / call.splits % call.kv_heads,
                  b = task / call.splits / call.kv_heads;
    const std::vector<Span>&q_spans = shared.q[b], &k_spans = shared.k[b];
    const int64_t some_queries = q_spans.size(), some_keys = k_spans.size();
    std::vector<Hidden<T>> hidden_of;
    for (int64_t h = h_kv * group; h < (h_kv + 1) * group; ++h) hidden_of.emplace_back(call, b, h);
    T *k_room = room.take<T>(columns * wide_d), *v_room = room.take<T>(columns * wide_v);
    T *d_k = room.take<T>(columns * wide_d), *d_v = room.take<T>(columns * wide_v);
    T *q_room = room.take<T>(block * wide_d), *grad_room = room.take<T>(block * wide_v);
    T *q_panel_room = room.take<T>(lanes * call.dim), *grad_panel_room = room.take<T>(lanes * call.dim_v);
    T* panel_room = room.take<T>(lanes * std::max({call.dim, call.dim_v, rank}));
    T *left_room = room.take<T>(block * wide_r), *left_panel_room = room.take<T>(lanes * rank),
      *right_room = room.take<T>(columns * wide_r);
    T *weights = room.take<T>(columns * lanes), *gradients = room.take<T>(columns * lanes),
      *gates = room.take<T>(columns * lanes);
    T* kept_room = room.take<T>(columns * 6 * LANES<T>);
    const Kept<T> kept{kept_room, kept_room + columns * 2 * LANES<T>, kept_room + columns * 4 * LANES<T>};
    const State<T> forth(room, lanes), back(room, lanes);
    T *mean = room.take<T>(lanes), *inverse = room.take<T>(lanes);
    uint32_t* starts = room.take<uint32_t>(lanes);
    Lookup<T> table(call, lanes, room);

    std::vector<T> carried(group * some_queries * 2 * lanes, T(0));  // each block's `back`, between blocks of keys
    std::vector<char> begun(group * some_queries, 0);                // whether its d_q was written
    const auto d_q_of = [&](int64_t h, int64_t query) {
      return const_cast<T*>(at_row<T>(call.d_q, b, call.d_q_batch, h, call.d_q_head, query, call.d_q_row));
    };
    for (int64_t ik = 0; ik < some_keys; ++ik) {
      const Span& keys = k_spans[ik];
      bool held = false;
      Rows<T> k{}, v{};
      for (int64_t h = h_kv * group; h < (h_kv + 1) * group; ++h)
        for (int64_t iq = split; iq < some_queries; iq += call.splits) {
          Tile tile;
          const int64_t bh = b * call.heads + h, query = q_spans[iq].begin;
          const T* border = border_of(bh, ik, query);
          if (!shared.look(call, b, h, iq, ik, tile) || *border == -INFINITE<T>) continue;
          const Hidden<T>& hidden = hidden_of[h - h_kv * group];
          computed.fetch_add(1, std::memory_order_relaxed);
          if (!held) {
            held = true;
            k = rows_of<T>(
                at_row<In>(call.k, b, call.k_batch, h_kv, call.k_head, keys.begin, call.k_row), call.k_row, keys.size(),
                call.dim, wide_d, k_room);
            v = rows_of<T>(
                at_row<In>(call.v, b, call.v_batch, h_kv, call.v_head, keys.begin, call.v_row), call.v_row, keys.size(),
                call.dim_v, wide_v, v_room);
            std::fill(d_k, d_k + columns * wide_d, T(0));
            std::fill(d_v, d_v + columns * wide_v, T(0));
          }
          const int64_t rows = tile.rows(), wide = round_up(rows, LANES<T>);
          const In* q_rows = at_row<In>(call.q, b, call.q_batch, h, call.q_head, query, call.q_row);
          const In* grad_rows = at_row<In>(call.grad, b, call.grad_batch, h, call.grad_head, query, call.grad_row);
          const Rows<T> q = rows_of<T>(q_rows, call.q_row, rows, call.dim, wide_d, q_room);
          const Rows<T> grad = rows_of<T>(grad_rows, call.grad_row, rows, call.dim_v, wide_v, grad_room);
          const Panel<T> q_panel = panel_of<T, In>(q_panel_room, q_rows, call.q_row, rows, call.dim, scale, panel_room);
          const Panel<T> grad_panel =
              panel_of<T, In>(grad_panel_room, grad_rows, call.grad_row, rows, call.dim_v, T(1), panel_room);
          T* carry = carried.data() + ((h - h_kv * group) * some_queries + iq) * 2 * lanes;
          char& started = begun[(h - h_kv * group) * some_queries + iq];
          if (!started && call.rest != nullptr)
            std::copy_n(static_cast<const T*>(call.rest) + bh * call.queries + query, rows, carry);
          std::copy_n(carry, lanes, back.ahead);
          std::copy_n(carry + lanes, lanes, back.low);
          std::fill(std::copy_n(border, rows, forth.ahead), forth.ahead + lanes, T(0));
          std::fill(std::copy_n(border + some_keys * call.queries, rows, forth.low), forth.low + lanes, T(0));
          const Dropout dropout(call, b, h);
          for (int64_t i = 0; dropout.on && i < rows; ++i) starts[i] = dropout.start(query + i);
          const auto drop = [&](T* values, int64_t first) {
            for (int64_t j = first; dropout.on && j < tile.last; ++j)
              dropout.apply(values + j * lanes, starts, rows, keys.begin + j);
          };

          int64_t first = tile.first;
          if (call.stick) {
            first = weigh<T>(tile, hidden, k, q_panel, wide, weights, gates, lanes, forth, shared.negligible[bh]);
            score<T>(v, grad_panel, first, tile.last, wide, gradients, lanes);
            drop(gradients, first);
            differentiate_shares<T>(weights, gates, gradients, lanes, first, tile.last, wide, scale, back);
          } else {
            const Sheet<T> sheet{weights, gates, lanes, first, tile.last, wide};
            score<T>(k, q_panel, first, tile.last, wide, weights, lanes);
            hidden.fill(tile, first, tile.last, weights, lanes, -INFINITE<T>);
            score<T>(v, grad_panel, first, tile.last, wide, gradients, lanes);
            drop(gradients, first);
            const T slope = call.slope == nullptr ? T(1) : static_cast<const T*>(call.slope)[h];
            Rows<T> left{}, right{};
            if (rank > 0) {
              const T* left_rows = at_row<T>(call.left, b, call.left_batch, h, call.left_head, query, call.left_row);
              left = rows_of<T>(left_rows, call.left_row, rows, rank, wide_r, left_room);
              right = rows_of<T>(
                  at_row<T>(call.right, b, call.right_batch, h, call.right_head, keys.begin, call.right_row),
                  call.right_row, keys.size(), rank, wide_r, right_room);
              const Panel<T> left_panel =
                  panel_of<T, T>(left_panel_room, left_rows, call.left_row, rows, rank, T(1), panel_room);
              score<T>(right, left_panel, first, tile.last, wide, gates, lanes);
              hidden.fill(tile, first, tile.last, gates, lanes, INFINITE<T>);
            }
            if (call.table != nullptr) table.enter(b, h, *tile.q);
            const T* sums = static_cast<const T*>(call.sums) + bh * 2 * call.queries + query;
            std::fill(std::copy_n(sums, rows, forth.most), forth.most + lanes, T(0));
            std::fill(std::copy_n(sums + call.queries, rows, inverse), inverse + lanes, T(0));
            std::fill(std::copy_n(means.data() + bh * call.queries + query, rows, mean), mean + lanes, T(0));
            const Softmax<T> softmax{forth.most, inverse, mean, blocks[bh][iq] == 1};
            const Targets<T> targets{
                call.d_table == nullptr ? nullptr
                                        : static_cast<T*>(call.d_table) + (bh * call.queries + query) * call.width,
                rows, call.d_slope == nullptr ? nullptr : call.d_slope + (split * call.batch + b) * call.heads + h};
            by_rule(rule_at(call, forth.ahead, rows), [&]<Rule RULE>() {
              differentiate_sums<RULE>(call, sheet, gradients, table, slope, forth, back, softmax, kept, targets);
            });
            if (call.d_left != nullptr)
              product<T>(
                  rows, wide_r, tile.last - first, gates + first * lanes, 1, lanes, right.start + first * right.stride,
                  right.stride, PANEL<T>, static_cast<T*>(call.d_left) + (bh * call.queries + query) * call.d_rank,
                  call.d_rank, true);
            if (call.d_right != nullptr)
              product<T>(
                  tile.last - first, wide_r, rows, gates + first * lanes, lanes, 1, left.start, left.stride, PANEL<T>,
                  static_cast<T*>(call.d_right) +
                      ((split * call.batch * call.heads + bh) * call.keys + keys.begin + first) * call.d_rank,
                  call.d_rank, true);
          }
          drop(weights, first);
          const int64_t count = tile.last - first;
          product<T>(
              count, wide_v, rows, weights + first * lanes, lanes, 1, grad.start, grad.stride, PANEL<T>,
              d_v + first * wide_v, wide_v, true);
          product<T>(
              count, wide_d, rows, gradients + first * lanes, lanes, 1, q.start, q.stride, PANEL<T>,
              d_k + first * wide_d, wide_d, true);
          product<T>(
              rows, wide_d, count, gradients + first * lanes, 1, lanes, k.start + first * k.stride, k.stride, PANEL<T>,
              d_q_of(h, query), call.d_q_row, started);
          started = 1;
          std::copy_n(back.ahead, lanes, carry);
          std::copy_n(back.low, lanes, carry + lanes);
        }
      const auto write = [&](const T* from, int64_t wide, void* to, int64_t split_stride, int64_t batch, int64_t head,
                             int64_t row) {
        T* start = const_cast<T*>(at_row<T>(to, b, batch, h_kv, head, keys.begin, row)) + split * split_stride;
        for (int64_t j = 0; j < keys.size(); ++j)
          held ? void(std::copy_n(from + j * wide, wide, start + j * row))
               : void(std::fill_n(start + j * row, wide, T(0)));
      };
      write(d_k, wide_d, call.d_k, call.d_k_split, call.d_k_batch, call.d_k_head, call.d_k_row);
      write(d_v, wide_v, call.d_v, call.d_v_split, call.d_v_batch, call.d_v_head, call.d_v_row);
    }
    for (int64_t h = h_kv * group; h < (h_kv + 1) * group; ++h)
      for (int64_t iq = split; iq < some_queries; iq += call.splits)
        for (int64_t i = q_spans[iq].begin; !begun[(h - h_kv * group) * some_queries + iq] && i < q_spans[iq].end; ++i)
          std::fill_n(d_q_of(h, i), wide_d, T(0));
  });
  if (call.tiles != nullptr) call.tiles[0] += computed;
}

}  // namespace headway::scan

extern "C" int headway_scan_forward(const headway::scan::Call* call, int kind, char* message) {
  return headway::by_kind(kind, message, [&]<typename T, typename In>() { headway::scan::forward<T, In>(*call); });
}

extern "C" int headway_scan_backward(const headway::scan::Call* call, int kind, char* message) {
  return headway::by_kind(kind, message, [&]<typename T, typename In>() { headway::scan::backward<T, In>(*call); });
}

// Lets Python check that both sides have the same layout.
extern "C" int64_t scan_size() { return sizeof(headway::scan::Call); }
