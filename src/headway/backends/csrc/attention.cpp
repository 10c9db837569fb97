// Attention with positions on CPUs, forward and backward, tile by tile, in O(queries + keys) memory.
//
//     out_i = sum_j softmax_j(scale q_i k_j + terms(i, j)) v_j
//
// Forward keeps a running maximum and sum per query. Backward recomputes each tile's weights from these. Tasks process
// tiles in a fixed order and write to their own memory, so that results do not depend on which thread runs which task.
#include "tile.h"

#include <ATen/Parallel.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <atomic>
#include <exception>
#include <map>
#include <numeric>
#include <type_traits>

namespace headway {

// Rows and columns of a tile, and the queries of a forward task, which share the packing of a block of keys.
constexpr int64_t QUERIES = 96, KEYS = 256, TASK = 384;
static_assert(TASK % QUERIES == 0);

// Rows as the products need them: in place if they fit, packed otherwise.
template <typename T>
struct Rows {
  const T* start;
  int64_t stride;
};

template <typename T, typename In>
Rows<T> rows_of(const In* from, int64_t stride, int64_t rows, int64_t width, int64_t wide, T* room) {
  if constexpr (std::is_same_v<T, In>) {
    if (width == wide) return {from, stride};
  }
  pack<T, In>(room, wide, from, stride, rows, width, T(1));
  return {room, wide};
}

// Run `work(task, room)` for every task on all threads, the next free thread taking the next task.
template <typename Work>
void run(int64_t tasks, size_t bytes, const Work& work) {
  std::atomic<int64_t> next{0};
  const int64_t threads = std::min<int64_t>(tasks, at::get_num_threads());
  at::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    Scratch room(bytes);
    for (int64_t task; (task = next.fetch_add(1)) < tasks;) {
      work(task, room);
      room.clear();
    }
  });
}

// What all tasks of a call share: the spans of each sequence and the bounds of each head.
template <typename T, typename In>
struct Shared {
  std::vector<std::vector<Span>> q, k;
  std::vector<Bounds<T>> bounds;

  explicit Shared(const Call& call) : bounds(call.batch * call.heads) {
    for (int64_t b = 0; b < call.batch; ++b) {
      const bool docs = call.q_docs != nullptr;
      const bool again = b > 0 && call.q_pos_batch == 0 && call.k_pos_batch == 0 &&
                         (!docs || (call.q_docs_batch == 0 && call.k_docs_batch == 0));
      if (again) {
        q.push_back(q[0]);
        k.push_back(k[0]);
        continue;
      }
      q.push_back(spans(
          call.q_pos + b * call.q_pos_batch, docs ? call.q_docs + b * call.q_docs_batch : nullptr, call.queries,
          QUERIES));
      k.push_back(spans(
          call.k_pos + b * call.k_pos_batch, docs ? call.k_docs + b * call.k_docs_batch : nullptr, call.keys, KEYS));
    }
    at::parallel_for(0, call.batch * call.heads, 1, [&](int64_t begin, int64_t end) {
      for (int64_t bh = begin; bh < end; ++bh)
        bounds[bh].template measure<In>(call, bh / call.heads, bh % call.heads, q[bh / call.heads], k[bh / call.heads]);
    });
  }
};

template <typename T>
bool negligible(const Bounds<T>& bounds, const Terms<T>& terms, const Tile& tile, int64_t iq, int64_t ik, T least) {
  if (bounds.threshold == -std::numeric_limits<T>::infinity()) return false;
  return bounds.q[iq] * bounds.k[ik] + bounds.rows[iq] + terms.most(tile) - least < bounds.threshold;
}

// ---------------------------------------------------------------------------------------------------------- forward

// One row of a tile: scores to exp(score - most). Updates `most`, the row's greatest score so far, and `sum`; earlier
// results of the row must be multiplied by `shrink`.
template <typename T>
inline void soften(T* row, int64_t first, int64_t wide, Added<T> added, T& most, T& sum, T& shrink) {
  using V = Vectorized<T>;
  constexpr int64_t lanes = LANES<T>;
  const V all(added.all);
  V best(-std::numeric_limits<T>::infinity());
  if (added.each == nullptr) {
    for (int64_t j = first; j < wide; j += lanes) best = at::vec::clamp_min(V::loadu(row + j), best);
    best = best + all;
  } else {
    for (int64_t j = first; j < wide; j += lanes) {
      const V x = V::loadu(row + j) + (V::loadu(added.each + j) + all);
      x.store(row + j);
      best = at::vec::clamp_min(x, best);
    }
  }
  const T now = std::max(most, max_of(best));
  if (now == -std::numeric_limits<T>::infinity()) {
    // fully masked, or only NaN, which comparisons miss: NaN must show in the result
    for (int64_t j = first; j < wide; ++j)
      if (std::isnan(row[j])) sum = row[j];
    std::fill(row + first, row + wide, T(0));
    shrink = T(1);
    return;
  }
  shrink = most == now ? T(1) : std::exp(most - now);
  most = now;
  const V shift(added.each == nullptr ? now - added.all : now);
  V total(T(0));
  for (int64_t j = first; j < wide; j += lanes) {
    const V p = exp_negative(V::loadu(row + j) - shift);
    p.store(row + j);
    total = total + p;
  }
  sum = sum * shrink + sum_of(total);
}

template <typename T, typename In>
void forward(const Call& call) {
  const Shared<T, In> shared(call);
  const bool few = call.decoding && call.queries <= FEW;
  const int64_t wide_d = round_up(call.dim, LANES<T>), wide_v = round_up(call.dim_v, LANES<T>);
  const int64_t per_head = (call.queries + TASK - 1) / TASK, group = call.heads / call.kv_heads;
  // the heads of a task read the same keys: in decoding, reading them is most of the work
  const int64_t together = few ? group : 1, per_batch = call.heads / together;
  const int64_t task_rows = std::min(TASK, round_up(call.queries, ROWS)),
                columns = std::min(KEYS, round_up(call.keys, PANEL<T>));
  const int64_t tile_rows = std::min(QUERIES, task_rows);
  const size_t bytes = sizeof(T) *
                       (together * task_rows * (wide_d + wide_v + 2) + columns * (2 * wide_d + wide_v) +
                        (tile_rows + 1) * columns + tile_rows + columns + LANES<T>)+64 *
                       16;
  std::atomic<int64_t> computed{0}, skipped{0};

  run(call.batch * per_batch * per_head, bytes, [&](int64_t task, Scratch& room) {
    const int64_t b = task / per_head / per_batch, h = task / per_head % per_batch * together, h_kv = h / group;
    // the last queries see the most keys: they start first, so that no long task is left for the end
    const int64_t begin = (per_head - 1 - task % per_head) * TASK, end = std::min(call.queries, begin + TASK),
                  rows = end - begin;
    const std::vector<Span>&q_spans = shared.q[b], &k_spans = shared.k[b];

    T *sums = room.take<T>(together * task_rows * wide_v), *q_room = room.take<T>(together * task_rows * wide_d);
    T *most = room.take<T>(together * task_rows), *total = room.take<T>(together * task_rows);
    T *k_room = room.take<T>(columns * wide_d), *k_panel = room.take<T>(columns * wide_d),
      *v_room = room.take<T>(columns * wide_v);
    T *scores = room.take<T>(tile_rows * columns), *line = room.take<T>(tile_rows + columns + LANES<T>),
      *row_room = room.take<T>(columns);
    std::vector<Terms<T>> terms;
    std::vector<Dropout> dropout;
    std::vector<Rows<T>> q;
    for (int64_t g = 0; g < together; ++g) {
      terms.emplace_back(call, b, h + g);
      dropout.emplace_back(call, b, h + g);
      q.push_back(
          rows_of<T>(
              at_row<In>(call.q, b, call.q_batch, h + g, call.q_head, begin, call.q_row), call.q_row, rows, call.dim,
              wide_d, q_room + g * task_rows * wide_d));
    }
    std::fill(sums, sums + together * task_rows * wide_v, T(0));
    std::fill(most, most + together * task_rows, -std::numeric_limits<T>::infinity());
    std::fill(total, total + together * task_rows, T(0));

    // from the keys beside the task's queries outward: decaying weights find their maximum early
    const int64_t blocks = k_spans.size();
    int64_t up = 0;
    while (up < blocks && k_spans[up].high < q_spans[begin / QUERIES].low) ++up;
    for (int64_t step = 0, down = up - 1; step < blocks; ++step) {
      const bool backward = up >= blocks || (down >= 0 && step % 2 == 1);
      const int64_t ik = backward ? down-- : up++;
      const Span& keys = k_spans[ik];
      bool packed = false;
      Rows<T> k{}, v{};
      for (int64_t iq = begin / QUERIES; iq * QUERIES < end; ++iq) {
        Tile tile;
        if (!look<T>(call, q_spans[iq], keys, tile)) continue;
        for (int64_t g = 0; g < together; ++g) {
          const int64_t query = iq * QUERIES - begin, first_row = g * task_rows + query;
          if (negligible(
                  shared.bounds[b * call.heads + h + g], terms[g], tile, iq, ik,
                  *std::min_element(most + first_row, most + first_row + tile.rows()))) {
            skipped.fetch_add(1, std::memory_order_relaxed);
            continue;
          }
          computed.fetch_add(1, std::memory_order_relaxed);
          if (!packed) {
            packed = true;
            const In* k_rows = at_row<In>(call.k, b, call.k_batch, h_kv, call.k_head, keys.begin, call.k_row);
            v = rows_of<T>(
                at_row<In>(call.v, b, call.v_batch, h_kv, call.v_head, keys.begin, call.v_row), call.v_row, keys.size(),
                call.dim_v, wide_v, v_room);
            if (few) {
              k = rows_of<T>(k_rows, call.k_row, keys.size(), call.dim, wide_d, k_room);
            } else {
              pack<T, In>(k_room, wide_d, k_rows, call.k_row, keys.size(), call.dim, T(call.scale));
              std::fill(k_room + keys.size() * wide_d, k_room + round_up(keys.size(), PANEL<T>) * wide_d, T(0));
              transpose<T>(k_panel, k_room, wide_d, keys.size(), call.dim);
            }
          }
          const Rows<T> mine{q[g].start + query * q[g].stride, q[g].stride};
          if (few) {
            products_of_few<T>(
                tile.rows(), tile.last - tile.first, wide_d, T(call.scale), mine.start, mine.stride,
                k.start + tile.first * k.stride, k.stride, scores + tile.first, columns);
            for (int64_t i = 0; i < tile.rows(); ++i)
              std::fill(scores + i * columns + tile.last, scores + i * columns + tile.wide, T(0));
          } else {
            product<T>(
                tile.rows(), tile.wide - tile.first, call.dim, mine.start, mine.stride, 1,
                k_panel + tile.first * call.dim, PANEL<T>, call.dim * PANEL<T>, scores + tile.first, columns, false);
          }
          terms[g].enter(tile, line);
          for (int64_t i = 0; i < tile.rows(); ++i) {
            T* row = scores + i * columns;
            T shrink;
            soften<T>(
                row, tile.first, tile.wide, terms[g].of_row(i, row_room), most[first_row + i], total[first_row + i],
                shrink);
            if (dropout[g].on) dropout[g].apply(row, tile.q->begin + i, keys.begin, tile.first, tile.wide);
            if (shrink != T(1)) {
              T* sum = sums + (first_row + i) * wide_v;
              for (int64_t d = 0; d < wide_v; ++d) sum[d] *= shrink;
            }
          }
          product<T>(
              tile.rows(), wide_v, tile.last - tile.first, scores + tile.first, columns, 1,
              v.start + tile.first * v.stride, v.stride, PANEL<T>, sums + first_row * wide_v, wide_v, true);
        }
      }
    }
    for (int64_t g = 0; g < together; ++g) {
      T* kept = static_cast<T*>(call.sums) + ((b * call.heads + h + g) * call.queries + begin) * 2;
      for (int64_t i = 0; i < rows; ++i) {
        const int64_t at = g * task_rows + i;
        const bool seen = total[at] > T(0) || std::isnan(total[at]);
        const T inverse = seen ? T(1) / total[at] : T(0);
        kept[2 * i] = seen ? most[at] : T(0);
        kept[2 * i + 1] = inverse;
        In* out =
            const_cast<In*>(at_row<In>(call.out, b, call.out_batch, h + g, call.out_head, begin + i, call.out_row));
        for (int64_t d = 0; d < call.dim_v; ++d) out[d] = static_cast<In>(sums[at * wide_v + d] * inverse);
      }
    }
  });
  if (call.tiles != nullptr) {
    call.tiles[0] += computed;
    call.tiles[1] += skipped;
  }
}

// --------------------------------------------------------------------------------------------------------- backward

// What backward needs per query: exp(score - most) · inverse is a weight, and `mean` is the mean of the gradients of
// its weights. A log-sum-exp would be one value instead of two, but eps · |log-sum-exp| less exact.
template <typename T>
struct Query {
  T most, inverse, mean;
};

// One row of a tile: scores to weights, and their gradients to those of the scores. Returns the sum of the latter.
// If the row is `whole`, all its keys in this tile, its mean is computed from the same values it is subtracted from, so
// that rounding errors cancel.
template <typename T>
inline T differentiate(
    T* weight, T* gradient, int64_t first, int64_t wide, Added<T> added, Query<T> query, bool whole) {
  using V = Vectorized<T>;
  constexpr int64_t lanes = LANES<T>;
  const V all(added.all), shift(added.each == nullptr ? query.most - added.all : query.most), inverse(query.inverse);
  const auto weigh = [&](int64_t j) {
    V x = V::loadu(weight + j);
    if (added.each != nullptr) x = x + (V::loadu(added.each + j) + all);
    const V p = exp_negative(x - shift) * inverse;
    p.store(weight + j);
    return p;
  };
  V total(T(0));
  if (whole) {
    V mean(T(0));
    for (int64_t j = first; j < wide; j += lanes) mean = at::vec::fmadd(weigh(j), V::loadu(gradient + j), mean);
    mean = V(sum_of(mean));
    for (int64_t j = first; j < wide; j += lanes) {
      const V g = V::loadu(weight + j) * (V::loadu(gradient + j) - mean);
      g.store(gradient + j);
      total = total + g;
    }
  } else {
    const V mean(query.mean);
    for (int64_t j = first; j < wide; j += lanes) {
      const V g = weigh(j) * (V::loadu(gradient + j) - mean);
      g.store(gradient + j);
      total = total + g;
    }
  }
  return sum_of(total);
}

template <typename T>
inline void add_to(T* to, const T* from, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] += from[i];
}

// The gradients of one head's terms, gathered tile by tile.
template <typename T>
class Gradients : public Terms<T> {
 public:
  using Terms<T>::clamp;

  Gradients(const Call& call, int64_t b, int64_t h, int64_t split) : Terms<T>(call, b, h) {
    const int64_t index = (split * call.batch + b) * call.heads + h;
    if (call.d_table != nullptr) d_table_ = call.d_table + index * call.width;
    if (call.d_tails != nullptr) d_tails_ = call.d_tails + index * 2;
    if (call.d_per_key != nullptr) d_per_key_ = static_cast<T*>(call.d_per_key) + (b * call.heads + h) * call.keys;
    if (call.d_rows != nullptr) d_rows_ = static_cast<T*>(call.d_rows) + index * call.queries * call.rows_width;
    if (call.d_pairs != nullptr) {  // as broadcast as the pairs themselves
      const int64_t heads = call.pairs_head == 0 ? 1 : call.heads;
      const int64_t head = (call.pairs_batch == 0 ? 0 : b) * heads + (call.pairs_head == 0 ? 0 : h);
      d_pairs_ = static_cast<T*>(call.d_pairs) + head * call.queries * call.keys;
    }
  }

  // As Terms::enter; `sums` is as long as `line`.
  void enter(const Tile& tile, T* line, T* sums) {
    Terms<T>::enter(tile, line);
    sums_ = sums;
    total_ = 0;
    if (tables() && this->line_ != nullptr) std::fill(sums + tile.first, sums + tile.rows() - 1 + tile.wide, T(0));
  }

  // Add the gradient of the scores of row i; `sum` is its sum.
  void add(int64_t i, const T* gradient, T sum) {
    const Tile& tile = *this->tile_;
    if (d_per_key_ != nullptr)
      add_to(d_per_key_ + tile.k->begin + tile.first, gradient + tile.first, tile.last - tile.first);
    if (d_pairs_ != nullptr)
      add_to(
          d_pairs_ + (tile.q->begin + i) * this->call_.keys + tile.k->begin + tile.first, gradient + tile.first,
          tile.last - tile.first);
    if (!tile.regular) {
      irregular(i, gradient);
      return;
    }
    if (tables()) {
      total_ += sum;
      if (this->line_ != nullptr)
        add_to(sums_ + (tile.rows() - 1 - i) + tile.first, gradient + tile.first, tile.last - tile.first);
    }
    if (d_rows_ != nullptr) {
      const int64_t width = this->call_.rows_width, entry = tile.distance - i + this->call_.rows_left;
      T* own = d_rows_ + (tile.q->begin + i) * width;
      const int64_t begin = clamp(-entry, tile.first, tile.last), end = clamp(width - entry, begin, tile.last);
      own[0] += std::accumulate(gradient + tile.first, gradient + begin, T(0));
      add_to(own + entry + begin, gradient + begin, end - begin);
      own[width - 1] += std::accumulate(gradient + end, gradient + tile.last, T(0));
    }
  }

  // The tile is done: its sums by distance go to the table.
  void leave() {
    const Tile& tile = *this->tile_;
    if (!tables() || !tile.regular) return;
    if (this->line_ == nullptr) {
      if (d_table_ != nullptr) d_table_[this->all_entry_] += total_;
      return;
    }
    const int64_t lowest = this->lowest_distance();
    for (int64_t u = tile.first; u < tile.rows() - 1 + tile.last; ++u) distance(lowest + u, sums_[u]);
  }

 private:
  bool tables() const { return d_table_ != nullptr || d_tails_ != nullptr; }

  void distance(int64_t apart, T gradient) {
    const int64_t entry = apart + this->call_.left, inside = clamp(entry, this->call_.width);
    if (d_table_ != nullptr) d_table_[inside] += gradient;
    if (d_tails_ != nullptr) d_tails_[entry < inside ? 0 : 1] += double(gradient) * double(std::abs(entry - inside));
  }

  void irregular(int64_t i, const T* gradient) {
    const Tile& tile = *this->tile_;
    if (!tables() && d_rows_ == nullptr) return;
    for (int64_t j = tile.first; j < tile.last; ++j) {
      if (!this->visible(i, j)) continue;
      const int64_t apart = this->Terms<T>::distance(i, j);
      if (tables()) distance(apart, gradient[j]);
      if (d_rows_ != nullptr)
        d_rows_
            [(tile.q->begin + i) * this->call_.rows_width +
             clamp(apart + this->call_.rows_left, this->call_.rows_width)] += gradient[j];
    }
  }

  double *d_table_ = nullptr, *d_tails_ = nullptr;
  T *d_per_key_ = nullptr, *d_rows_ = nullptr, *d_pairs_ = nullptr, *sums_ = nullptr;
  double total_ = 0;
};

// sum_j weight(i, j) (d_out_i v_j) = d_out_i out_i, not needed of rows that are whole. Several rows at a time, since
// each sum waits for its last term.
template <typename T, typename In>
void summarise(const Call& call, int64_t bh, const Span& span, const T* sums, bool whole, Query<T>* to) {
  constexpr int64_t some = 8;
  const int64_t b = bh / call.heads, h = bh % call.heads;
  for (int64_t i = span.begin; i < span.end; i += some) {
    const int64_t rows = std::min(some, span.end - i);
    const In* out = at_row<In>(call.out, b, call.out_batch, h, call.out_head, i, call.out_row);
    const In* grad = at_row<In>(call.grad, b, call.grad_batch, h, call.grad_head, i, call.grad_row);
    double mean[some] = {};
    for (int64_t d = 0; !whole && d < call.dim_v; ++d)
      for (int64_t r = 0; r < rows; ++r)
        mean[r] += double(grad[r * call.grad_row + d]) * double(out[r * call.out_row + d]);
    for (int64_t r = 0; r < rows; ++r) to[i + r] = {sums[2 * (i + r)], sums[2 * (i + r) + 1], T(mean[r])};
  }
}

template <typename T, typename In>
void backward(const Call& call) {
  const Shared<T, In> shared(call);
  const int64_t wide_d = round_up(call.dim, LANES<T>), wide_v = round_up(call.dim_v, LANES<T>);
  const int64_t group = call.heads / call.kv_heads;
  const int64_t columns = std::min(KEYS, round_up(call.keys, PANEL<T>)), tile_rows = std::min(QUERIES, call.queries);
  const size_t bytes = sizeof(T) * (columns * (3 * wide_d + 3 * wide_v) + tile_rows * (wide_d + wide_v) +
                                    (2 * tile_rows + 1) * columns + 2 * (tile_rows + columns + LANES<T>)) +
                       64 * 16;
  const T scale = T(call.scale);

  std::vector<std::vector<int64_t>> blocks(call.batch);  // number of blocks of keys that a span of queries sees
  for (int64_t b = 0; b < call.batch; ++b)
    for (const Span& q : shared.q[b])
      blocks[b].push_back(std::count_if(shared.k[b].begin(), shared.k[b].end(), [&](const Span& k) {
        Tile tile;
        return look<T>(call, q, k, tile);
      }));
  std::vector<Query<T>> queries(call.batch * call.heads * call.queries);
  std::vector<std::vector<T>> least(call.batch * call.heads);  // lowest logarithm of a sum, per span of queries
  at::parallel_for(0, call.batch * call.heads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t bh = begin; bh < end; ++bh) {
      const T* sums = static_cast<const T*>(call.sums) + bh * call.queries * 2;
      const std::vector<Span>& q_spans = shared.q[bh / call.heads];
      for (size_t iq = 0; iq < q_spans.size(); ++iq) {
        summarise<T, In>(
            call, bh, q_spans[iq], sums, blocks[bh / call.heads][iq] == 1, queries.data() + bh * call.queries);
        T lowest = std::numeric_limits<T>::infinity();
        for (int64_t i = q_spans[iq].begin; i < q_spans[iq].end; ++i)
          lowest = std::min(lowest, sums[2 * i] - std::log(sums[2 * i + 1]));
        least[bh].push_back(lowest);
      }
    }
  });

  // the longest tasks start first, so that none is left for the end
  const int64_t tasks = call.batch * call.kv_heads * call.splits;
  std::vector<int64_t> order(tasks), length(tasks, 0);
  std::iota(order.begin(), order.end(), 0);
  std::atomic<int64_t> computed{0}, skipped{0};
  const auto each_tile = [&](int64_t task, const auto& work) {
    const int64_t split = task % call.splits, h_kv = task / call.splits % call.kv_heads,
                  b = task / call.splits / call.kv_heads;
    const std::vector<Span>&q_spans = shared.q[b], &k_spans = shared.k[b];
    for (int64_t ik = split; ik < int64_t(k_spans.size()); ik += call.splits)
      for (int64_t h = h_kv * group; h < (h_kv + 1) * group; ++h) {
        const Terms<T> terms(call, b, h);
        const int64_t bh = b * call.heads + h;
        for (int64_t iq = 0; iq < int64_t(q_spans.size()); ++iq) {
          Tile tile;
          if (!look<T>(call, q_spans[iq], k_spans[ik], tile)) continue;
          if (negligible(shared.bounds[bh], terms, tile, iq, ik, least[bh][iq]))
            skipped.fetch_add(1, std::memory_order_relaxed);
          else
            work(ik, h, iq, tile);
        }
      }
  };
  if (tasks > 1) {
    at::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task)
        each_tile(task, [&](int64_t, int64_t, int64_t, const Tile& tile) {
          length[task] += tile.rows() * (tile.wide - tile.first);
        });
    });
    skipped = 0;
    std::stable_sort(
        order.begin(), order.end(), [&](int64_t one, int64_t other) { return length[one] > length[other]; });
  }

  const auto gradients_of = [&](int64_t task, Scratch& room) {
    const int64_t split = task % call.splits, h_kv = task / call.splits % call.kv_heads,
                  b = task / call.splits / call.kv_heads;
    T *k_room = room.take<T>(columns * wide_d), *k_panel = room.take<T>(columns * wide_d),
      *d_k = room.take<T>(columns * wide_d);
    T *v_room = room.take<T>(columns * wide_v), *v_panel = room.take<T>(columns * wide_v),
      *d_v = room.take<T>(columns * wide_v);
    T *q_room = room.take<T>(tile_rows * wide_d), *grad_room = room.take<T>(tile_rows * wide_v);
    T *weights = room.take<T>(tile_rows * columns), *gradients = room.take<T>(tile_rows * columns),
      *row_room = room.take<T>(columns);
    T *line = room.take<T>(tile_rows + columns + LANES<T>), *sums = room.take<T>(tile_rows + columns + LANES<T>);
    std::vector<Gradients<T>> terms;
    for (int64_t h = h_kv * group; h < (h_kv + 1) * group; ++h) terms.emplace_back(call, b, h, split);

    const int64_t some_queries = shared.q[b].size(), some_keys = shared.k[b].size();
    std::vector<char> begun(group * some_queries, 0);  // whether d_q of a head's span was written
    const auto d_q_of = [&](int64_t h, int64_t query) {
      return static_cast<T*>(call.d_q) + split * call.d_q_split + b * call.d_q_batch + h * call.d_q_head +
             query * call.d_q_row;
    };
    int64_t next = split;  // the first block of keys whose gradients are not written
    int64_t held = -1;     // the block of keys in the rooms
    const auto write_until = [&](int64_t last) {
      for (; next < last; next += call.splits) {
        const Span& keys = shared.k[b][next];
        for (int64_t j = 0; j < keys.size(); ++j) {
          In* to_k = const_cast<In*>(
              at_row<In>(call.d_k, b, call.d_k_batch, h_kv, call.d_k_head, keys.begin + j, call.d_k_row));
          In* to_v = const_cast<In*>(
              at_row<In>(call.d_v, b, call.d_v_batch, h_kv, call.d_v_head, keys.begin + j, call.d_v_row));
          const bool seen = next == held;
          for (int64_t d = 0; d < call.dim; ++d) to_k[d] = seen ? static_cast<In>(d_k[j * wide_d + d] * scale) : In(0);
          for (int64_t d = 0; d < call.dim_v; ++d) to_v[d] = seen ? static_cast<In>(d_v[j * wide_v + d]) : In(0);
        }
      }
    };
    each_tile(task, [&](int64_t ik, int64_t h, int64_t iq, const Tile& tile) {
      computed.fetch_add(1, std::memory_order_relaxed);
      if (ik != held) {
        write_until(ik);
        held = ik;
        const Span& keys = *tile.k;
        const int64_t whole = round_up(keys.size(), PANEL<T>);
        pack<T, In>(
            k_room, wide_d, at_row<In>(call.k, b, call.k_batch, h_kv, call.k_head, keys.begin, call.k_row), call.k_row,
            keys.size(), call.dim, scale);
        pack<T, In>(
            v_room, wide_v, at_row<In>(call.v, b, call.v_batch, h_kv, call.v_head, keys.begin, call.v_row), call.v_row,
            keys.size(), call.dim_v, T(1));
        std::fill(k_room + keys.size() * wide_d, k_room + whole * wide_d, T(0));
        std::fill(v_room + keys.size() * wide_v, v_room + whole * wide_v, T(0));
        transpose<T>(k_panel, k_room, wide_d, keys.size(), call.dim);
        transpose<T>(v_panel, v_room, wide_v, keys.size(), call.dim_v);
        std::fill(d_k, d_k + columns * wide_d, T(0));
        std::fill(d_v, d_v + columns * wide_v, T(0));
      }
      const int64_t rows = tile.rows(), width = tile.last - tile.first, query = tile.q->begin, bh = b * call.heads + h;
      const Rows<T> q = rows_of<T>(
          at_row<In>(call.q, b, call.q_batch, h, call.q_head, query, call.q_row), call.q_row, rows, call.dim, wide_d,
          q_room);
      const Rows<T> grad = rows_of<T>(
          at_row<In>(call.grad, b, call.grad_batch, h, call.grad_head, query, call.grad_row), call.grad_row, rows,
          call.dim_v, wide_v, grad_room);
      product<T>(
          rows, tile.wide - tile.first, call.dim, q.start, q.stride, 1, k_panel + tile.first * call.dim, PANEL<T>,
          call.dim * PANEL<T>, weights + tile.first, columns, false);
      product<T>(
          rows, tile.wide - tile.first, call.dim_v, grad.start, grad.stride, 1, v_panel + tile.first * call.dim_v,
          PANEL<T>, call.dim_v * PANEL<T>, gradients + tile.first, columns, false);
      Gradients<T>& head = terms[h - h_kv * group];
      const Dropout dropout(call, b, h);
      head.enter(tile, line, sums);
      for (int64_t i = 0; i < rows; ++i) {
        T *weight = weights + i * columns, *gradient = gradients + i * columns;
        if (dropout.on) dropout.apply(gradient, query + i, tile.k->begin, tile.first, tile.wide);
        const T sum = differentiate<T>(
            weight, gradient, tile.first, tile.wide, head.of_row(i, row_room), queries[bh * call.queries + query + i],
            blocks[b][iq] == 1);
        head.add(i, gradient, sum);
        if (dropout.on) dropout.apply(weight, query + i, tile.k->begin, tile.first, tile.wide);
      }
      head.leave();
      product<T>(
          width, wide_v, rows, weights + tile.first, 1, columns, grad.start, grad.stride, PANEL<T>,
          d_v + tile.first * wide_v, wide_v, true);
      product<T>(
          width, wide_d, rows, gradients + tile.first, 1, columns, q.start, q.stride, PANEL<T>,
          d_k + tile.first * wide_d, wide_d, true);
      char& started = begun[(h - h_kv * group) * some_queries + iq];
      product<T>(
          rows, wide_d, width, gradients + tile.first, columns, 1, k_room + tile.first * wide_d, wide_d, PANEL<T>,
          d_q_of(h, query), call.d_q_row, started);
      started = 1;
    });
    write_until(some_keys);
    for (int64_t g = 0; g < group; ++g)
      for (int64_t iq = 0; iq < some_queries; ++iq)
        for (int64_t i = shared.q[b][iq].begin; !begun[g * some_queries + iq] && i < shared.q[b][iq].end; ++i)
          std::fill_n(d_q_of(h_kv * group + g, i), wide_d, T(0));
  };
  // tasks that add to the same gradient of pairs run one after the other, in a fixed order
  const bool one_batch = call.d_pairs != nullptr && call.pairs_batch == 0,
             one_head = call.d_pairs != nullptr && call.pairs_head == 0;
  std::map<int64_t, size_t> found;
  std::vector<std::vector<int64_t>> together;
  for (const int64_t task : order) {
    const int64_t b = one_batch ? 0 : task / call.splits / call.kv_heads,
                  h = one_head ? 0 : task / call.splits % call.kv_heads;
    const auto [place, fresh] = found.emplace((b * call.kv_heads + h) * call.splits + task % call.splits, found.size());
    if (fresh) together.emplace_back();
    together[place->second].push_back(task);
  }
  run(together.size(), bytes, [&](int64_t turn, Scratch& room) {
    for (const int64_t task : together[turn]) {
      gradients_of(task, room);
      room.clear();
    }
  });
  if (call.tiles != nullptr) {
    call.tiles[0] += computed;
    call.tiles[1] += skipped;
  }
}

// Run `work` for the accumulator's type and the inputs'. Returns 0, or 1 with a message of at most 255 characters.
// kind: 0 float32, 1 bfloat16, 2 float16, 3 float64.
template <typename Work>
int by_kind(int kind, char* message, const Work& work) {
  try {
    switch (kind) {
      case 0:
        work.template operator()<float, float>();
        break;
      case 1:
        work.template operator()<float, c10::BFloat16>();
        break;
      case 2:
        work.template operator()<float, c10::Half>();
        break;
      default:
        work.template operator()<double, double>();
    }
    return 0;
  } catch (const std::exception& error) {
    std::strncpy(message, error.what(), 255);
    message[255] = 0;
    return 1;
  }
}

}  // namespace headway

extern "C" int headway_forward(const headway::Call* call, int kind, char* message) {
  return headway::by_kind(kind, message, [&]<typename T, typename In>() { headway::forward<T, In>(*call); });
}

extern "C" int headway_backward(const headway::Call* call, int kind, char* message) {
  return headway::by_kind(kind, message, [&]<typename T, typename In>() { headway::backward<T, In>(*call); });
}

// Lets Python check that both sides have the same layout.
extern "C" int64_t headway_call_size() { return sizeof(headway::Call); }
