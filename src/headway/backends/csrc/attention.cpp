// Attention with positions on CPUs, forward and backward, tile by tile, in O(queries + keys) memory.
//
//     out_i = sum_j softmax_j(scale q_i k_j + terms(i, j)) v_j
//
// Forward keeps a running maximum and sum per query. Backward recomputes each tile's weights from these. Tasks process
// tiles in a fixed order and write to their own memory, so that results do not depend on which thread runs which task.
#include "decay.h"
#include "softmax.h"
#include "step.h"
#include "tasks.h"

#include <map>
#include <numeric>
#include <optional>

namespace headway {

// Rows and columns of a tile, and the queries of a forward task, which share the packing of a block of keys.
constexpr int64_t QUERIES = 96, KEYS = 256, TASK = 384;
static_assert(TASK % QUERIES == 0);

// What all tasks of a call share: the spans of each sequence and the bounds of each head.
template <typename T, typename In>
struct Shared {
  std::vector<std::vector<Span>> q, k;
  Shown shown;
  std::vector<Bounds<T>> bounds;
  std::vector<Range> queries, keys;
  std::optional<Products<T>> rows, cols, values;  // the tables of tokens, as far as some pair needs them

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
    shown.measure(call, q, k);
    const int64_t measured = Bounds<T>::are_needed(call, KEYS) ? call.batch * call.heads : 0;
    at::parallel_for(0, measured, 1, [&](int64_t begin, int64_t end) {
      for (int64_t bh = begin; bh < end; ++bh)
        bounds[bh].template measure<In>(call, bh / call.heads, bh % call.heads, q[bh / call.heads], k[bh / call.heads]);
    });
    queries = ranges(q);
    keys = ranges(k);
    rows.emplace(call, queries_of(call), queries, keys);
    cols.emplace(call, keys_of(call), queries, keys);
    values.emplace(call, values_of(call), queries, keys);
  }

  bool look(const Call& call, int64_t b, int64_t h, int64_t iq, int64_t ik, Tile& tile) const {
    return headway::look<T>(call, q[b][iq], k[b][ik], shown.of(b, h, iq, ik), tile);
  }
};

template <typename T>
bool negligible(const Bounds<T>& bounds, const Terms<T>& terms, const Tile& tile, int64_t iq, int64_t ik, T least) {
  if (bounds.threshold == -std::numeric_limits<T>::infinity()) return false;
  return bounds.q[iq] * bounds.k[ik] + bounds.rows[iq] + terms.most(tile) - least < bounds.threshold;
}

// Columns [first, wide) of a row: content x to cap tanh(x / cap), and its derivative to `slope`, if not null.
template <typename T>
inline void cap(T* row, int64_t first, int64_t wide, T cap, T* slope) {
  using V = Vectorized<T>;
  const V most(cap), inverse(T(1) / cap), one(T(1));
  for (int64_t j = first; j < wide; j += LANES<T>) {
    const V t = tanh_of(V::loadu(row + j) * inverse);
    (most * t).store(row + j);
    if (slope != nullptr) (one - t * t).store(slope + j);
  }
}

// ---------------------------------------------------------------------------------------------------------- forward

template <typename T, typename In>
void forward(const Call& call) {
  const Shared<T, In> shared(call);
  const Products<T>&rows_tables = *shared.rows, &cols_tables = *shared.cols, &values = *shared.values;
  const bool few = call.decoding && call.queries <= FEW && call.rates == nullptr && call.q_decay == nullptr;
  const int64_t wide_d = round_up(call.dim, LANES<T>), wide_v = round_up(call.dim_v, LANES<T>);
  const int64_t per_head = (call.queries + TASK - 1) / TASK, group = call.heads / call.kv_heads;
  // the heads of a task read the same keys: in decoding, reading them is most of the work
  const int64_t together = few ? group : 1, per_batch = call.heads / together;
  const int64_t task_rows = std::min(TASK, round_up(call.queries, ROWS)),
                columns = std::min(KEYS, round_up(call.keys, PANEL<T>));
  const int64_t tile_rows = std::min(QUERIES, task_rows);
  const size_t bytes = sizeof(T) * (together * task_rows * (wide_d + wide_v + 2) + columns * (2 * wide_d + wide_v) +
                                    (tile_rows + 1) * columns + Terms<T>::room(call, tile_rows, columns)) +
                       sizeof(T) * (together * task_rows * (rows_tables.stride + values.stride) + rows_tables.room()) +
                       64 * 20 + Altered<T>::bytes(call, tile_rows, columns);
  std::atomic<int64_t> computed{0}, skipped{0};

  const auto work = [&](int64_t task, Scratch& room, const T* tables) {
    const int64_t b = task / per_head / per_batch, h = task / per_head % per_batch * together, h_kv = h / group;
    // the last queries see the most keys: they start first, so that no long task is left for the end
    const int64_t begin = (per_head - 1 - task % per_head) * TASK, end = std::min(call.queries, begin + TASK),
                  rows = end - begin;
    const std::vector<Span>&q_spans = shared.q[b], &k_spans = shared.k[b];

    T *sums = room.take<T>(together * task_rows * wide_v), *q_room = room.take<T>(together * task_rows * wide_d);
    T *most = room.take<T>(together * task_rows), *total = room.take<T>(together * task_rows);
    T *k_room = room.take<T>(columns * wide_d), *k_panel = room.take<T>(columns * wide_d),
      *v_room = room.take<T>(columns * wide_v);
    T *scores = room.take<T>(tile_rows * columns), *tile_room = room.take<T>(Terms<T>::room(call, tile_rows, columns)),
      *row_room = room.take<T>(columns);
    Altered<T> altered(call, b, 0, room, tile_rows, columns);
    std::vector<Terms<T>> terms;
    T *own = room.take<T>(together * task_rows * rows_tables.stride),  // tables of the task's queries
        *products = room.take<T>(rows_tables.room());
    std::vector<Dropout> dropout;
    std::vector<Rows<T>> q;
    for (int64_t g = 0; g < together; ++g) {
      terms.emplace_back(call, b, h + g);
      if (rows_tables) {
        T* mine = own + g * task_rows * rows_tables.stride;
        rows_tables.tables(b, h + g, begin, rows, mine, products);
        terms.back().set_rows(
            {mine - begin * rows_tables.stride, rows_tables.stride, rows_tables.width, rows_tables.left});
      }
      if (cols_tables && tables == nullptr) terms.back().set_cols(&cols_tables, b, h + g);
      if (tables != nullptr)
        terms.back().set_cols(
            {const_cast<T*>(tables) + g * call.keys * cols_tables.stride, cols_tables.stride, cols_tables.width,
             cols_tables.left});
      dropout.emplace_back(call, b, h + g);
      q.push_back(
          rows_of<T>(
              at_row<In>(call.q, b, call.q_batch, h + g, call.q_head, begin, call.q_row), call.q_row, rows, call.dim,
              wide_d, q_room + g * task_rows * wide_d));
    }
    std::fill(sums, sums + together * task_rows * wide_v, T(0));
    std::fill(most, most + together * task_rows, -std::numeric_limits<T>::infinity());
    std::fill(total, total + together * task_rows, T(0));
    T* shares = room.take<T>(together * task_rows * values.stride);  // the sum of each row's weights by distance
    for (int64_t g = 0; values && g < together; ++g)
      values.clear(b, begin, rows, shares + g * task_rows * values.stride);

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
        for (int64_t g = 0; g < together; ++g) {
          Tile tile;
          if (!shared.look(call, b, h + g, iq, ik, tile)) continue;
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
              if (altered.on)
                altered.enter(k_room, keys, h_kv);
              else
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
          } else if (altered.on) {
            altered.scores(tile, mine.start, mine.stride, scores, columns);
          } else {
            product<T>(
                tile.rows(), tile.wide - tile.first, call.dim, mine.start, mine.stride, 1,
                k_panel + tile.first * call.dim, PANEL<T>, call.dim * PANEL<T>, scores + tile.first, columns, false);
          }
          terms[g].enter(tile, columns, tile_room);
          for (int64_t i = 0; i < tile.rows(); ++i) {
            T* row = scores + i * columns;
            T shrink;
            if (call.softcap != 0) cap<T>(row, tile.first, tile.wide, T(call.softcap), nullptr);
            soften<T>(
                row, tile.first, tile.wide, terms[g].of_row(i, row_room), most[first_row + i], total[first_row + i],
                shrink);
            if (dropout[g].on) dropout[g].apply(row, tile.q->begin + i, keys.begin, tile.first, tile.wide);
            if (shrink != T(1)) {
              T* sum = sums + (first_row + i) * wide_v;
              for (int64_t d = 0; d < wide_v; ++d) sum[d] *= shrink;
            }
            if (values) {
              T* share = shares + (first_row + i) * values.stride;
              for (int64_t e = 0; shrink != T(1) && e < values.width; ++e) share[e] *= shrink;
              terms[g].by_distance(i, [&](int64_t first, int64_t last, int64_t distance) {
                add_to_table(share, row, values.width, first, last, distance + values.left);
              });
            }
          }
          product<T>(
              tile.rows(), wide_v, tile.last - tile.first, scores + tile.first, columns, 1,
              v.start + tile.first * v.stride, v.stride, PANEL<T>, sums + first_row * wide_v, wide_v, true);
        }
      }
    }
    for (int64_t g = 0; g < together; ++g) {
      if (values)
        values.combine(
            b, h + g, begin, rows, shares + g * task_rows * values.stride, sums + g * task_rows * wide_v, wide_v);
      T* kept = static_cast<T*>(call.sums) + ((b * call.heads + h + g) * call.queries + begin) * 2;
      for (int64_t i = 0; i < rows; ++i) {
        const int64_t at = g * task_rows + i;
        const bool seen = total[at] > T(0) || std::isnan(total[at]);
        T shrink = T(1);
        if (call.sinks != nullptr && seen) {
          const T sink = static_cast<const T*>(call.sinks)[h + g], greatest = std::max(most[at], sink);
          shrink = std::exp(most[at] - greatest);
          total[at] = total[at] * shrink + std::exp(sink - greatest);
          most[at] = greatest;
        }
        const T inverse = seen ? T(1) / total[at] : T(0);
        kept[2 * i] = seen ? most[at] : T(0);
        kept[2 * i + 1] = inverse;
        In* out =
            const_cast<In*>(at_row<In>(call.out, b, call.out_batch, h + g, call.out_head, begin + i, call.out_row));
        for (int64_t d = 0; d < call.dim_v; ++d) out[d] = static_cast<In>(sums[at * wide_v + d] * (shrink * inverse));
      }
    }
  };
  if (!cols_tables || few) {
    run(call.batch * per_batch * per_head, bytes, [&](int64_t task, Scratch& room) { work(task, room, nullptr); });
  } else {  // the keys' tables of as many heads as there are threads, then the tasks of these heads
    const int64_t heads = call.batch * call.heads, some = std::min<int64_t>(heads, at::get_num_threads());
    const int64_t size = call.keys * cols_tables.stride, blocks = (call.keys + KEYS - 1) / KEYS;
    const auto tables = uninitialised<T>(some * size);
    for (int64_t start = 0; start < heads; start += some) {
      const int64_t now = std::min(some, heads - start);
      run(now * blocks, sizeof(T) * cols_tables.room() + 64, [&](int64_t task, Scratch& room) {
        const int64_t at = task / blocks, bh = start + at, key = task % blocks * KEYS;
        cols_tables.tables(
            bh / call.heads, bh % call.heads, key, std::min(KEYS, call.keys - key),
            tables.get() + at * size + key * cols_tables.stride, room.take<T>(cols_tables.room()));
      });
      run(now * per_head, bytes, [&](int64_t task, Scratch& room) {
        work(start * per_head + task, room, tables.get() + task / per_head * size);
      });
    }
  }
  if (call.tiles != nullptr) {
    call.tiles[0] += computed;
    call.tiles[1] += skipped;
  }
}

// --------------------------------------------------------------------------------------------------------- backward

template <typename To, typename T>
inline void add_to(To* to, const T* from, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] += from[i];
}

// The gradients of one head's terms, gathered tile by tile.
template <typename T>
class Gradients : public Terms<T> {
 public:
  using Terms<T>::clamp;

  Gradients(const Call& call, int64_t b, int64_t h, int64_t split) : Terms<T>(call, b, h) {
    const int64_t bh = b * call.heads + h, index = split * call.batch * call.heads + bh;
    if (call.d_table != nullptr) d_table_ = call.d_table + index * call.width;
    if (call.d_tails != nullptr) d_tails_ = call.d_tails + index * 2;
    if (call.d_per_key != nullptr) d_per_key_ = call.d_per_key + bh * call.keys;
    if (call.d_curve_level != nullptr) d_level_ = call.d_curve_level + index * call.curve_width;
    if (call.d_curve_base != nullptr) d_base_ = call.d_curve_base + index * (call.curve_knots + 1);
    if (call.d_curve_slope != nullptr) d_slope_ = call.d_curve_slope + index * (call.curve_knots + 1);
    if (call.d_curve_rate != nullptr) d_rate_ = call.d_curve_rate + index * call.queries;
    if (call.d_q_slopes != nullptr) d_q_slopes_ = static_cast<T*>(call.d_q_slopes) + index * call.queries;
    if (call.d_k_slopes != nullptr) d_k_slopes_ = static_cast<T*>(call.d_k_slopes) + bh * call.keys;
    if (call.d_rows != nullptr)
      d_rows = {
          static_cast<T*>(call.d_rows) + index * call.queries * call.rows_width, call.rows_width, call.rows_width,
          call.rows_left};
    if (call.d_cols != nullptr)
      d_cols = {
          static_cast<T*>(call.d_cols) + bh * call.keys * call.cols_width, call.cols_width, call.cols_width,
          call.cols_left};
    if (call.d_pairs != nullptr) {  // as broadcast as the pairs themselves
      const int64_t heads = call.pairs_head == 0 ? 1 : call.heads;
      const int64_t head = (call.pairs_batch == 0 ? 0 : b) * heads + (call.pairs_head == 0 ? 0 : h);
      d_pairs_ = static_cast<T*>(call.d_pairs) + head * call.queries * call.keys;
    }
  }

  Tables<T> d_rows, d_cols;  // the gradients of the tokens' tables, added to

  // Values that `enter` needs for sums.
  static int64_t sums(const Call& call, int64_t rows, int64_t columns) {
    return Terms<T>::lines(call, rows) * Terms<T>::apart(rows, columns) + columns;
  }
  // As Terms::enter.
  void enter(const Tile& tile, int64_t columns, T* room, T* sums) {
    Terms<T>::enter(tile, columns, room);
    sums_ = sums;
    by_key_ = sums + Terms<T>::lines(this->call_, tile.rows()) * Terms<T>::apart(tile.rows(), columns);
    if (d_k_slopes_ != nullptr) std::fill(by_key_ + tile.first, by_key_ + tile.wide, T(0));
    total_ = 0;
    if (tables() && this->line_ != nullptr)
      this->each_line([&](int64_t line, int64_t first, int64_t last, int64_t) {
        std::fill(sums + line * this->apart_ + first, sums + line * this->apart_ + last, T(0));
      });
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
        add_to(this->line_of(sums_, i) + tile.first, gradient + tile.first, tile.last - tile.first);
    }
    if (d_rows)
      add_to_table(
          d_rows.of(tile.q->begin + i), gradient, d_rows.width, tile.first, tile.last, tile.distance - i + d_rows.left);
    if (curved()) {
      const T* levels = this->levels_ + (tile.rows() - 1 - i);
      curve(i, gradient, tile.first, tile.last, tile.distance - i, [&](int64_t j) { return levels[j]; });
    }
    if (this->away_ != nullptr) {
      const T* away = this->away_ + (tile.rows() - 1 - i);
      if (d_q_slopes_ != nullptr) d_q_slopes_[tile.q->begin + i] += dot(away, gradient, tile.first, tile.wide);
      if (d_k_slopes_ != nullptr)
        for (int64_t j = tile.first; j < tile.last; ++j) by_key_[j] += away[j] * gradient[j];
    }
  }

  // The tile is done: its sums by distance go to the table, and its gradients by key to the keys' tables.
  void leave(const T* gradients, int64_t columns) {
    const Tile& tile = *this->tile_;
    if (!tile.regular) return;
    if (d_cols) leave_columns(gradients, columns);
    if (d_k_slopes_ != nullptr)
      add_to(d_k_slopes_ + tile.k->begin + tile.first, by_key_ + tile.first, tile.last - tile.first);
    if (!tables()) return;
    if (this->line_ == nullptr) {
      if (d_table_ != nullptr) d_table_[this->all_entry_] += total_;
      return;
    }
    this->each_line([&](int64_t line, int64_t first, int64_t last, int64_t apart) {
      add_by_distance(sums_ + line * this->apart_, first, last, apart);
    });
  }

 private:
  static T dot(const T* one, const T* other, int64_t first, int64_t wide) {
    Vectorized<T> sum(T(0));
    for (int64_t j = first; j < wide; j += LANES<T>)
      sum = at::vec::fmadd(Vectorized<T>::loadu(one + j), Vectorized<T>::loadu(other + j), sum);
    return sum_of(sum);
  }

  // The reverse of Terms::enter_columns.
  void leave_columns(const T* gradients, int64_t columns) {
    constexpr int64_t lanes = LANES<T>;
    const Tile& tile = *this->tile_;
    const int64_t rows = tile.rows(), keys = tile.k->size();
    if (this->above_stride_ == 0) {
      T* sums = this->above_;
      std::fill(sums + tile.first, sums + tile.wide, T(0));
      for (int64_t i = 0; i < rows; ++i)
        for (int64_t j = tile.first; j < tile.wide; ++j) sums[j] += gradients[i * columns + j];
      for (int64_t j = tile.first; j < tile.last; ++j) d_cols.of(tile.k->begin + j)[this->above_entry_] += sums[j];
      return;
    }
    T some[lanes * lanes];
    this->each_square(tile.distance + d_cols.left, [&](int64_t i, int64_t j, int64_t lowest, auto kind) {
      const T* from = gradients + i * columns + j;
      T* to = d_cols.of(tile.k->begin + j);
      if (kind == Terms<T>::Square::INSIDE) {
        at::vec::transpose_mxn<T, lanes, lanes>(from + (lanes - 1) * columns, -columns, some, lanes);
        to += lowest;
        for (int64_t m = 0; m < lanes; ++m, to += d_cols.stride + 1)
          (Vectorized<T>::loadu(to) + Vectorized<T>::loadu(some + m * lanes)).store(to);
        return;
      }
      if (kind == Terms<T>::Square::END) {
        Vectorized<T> sum(T(0));
        for (int64_t r = 0; r < lanes; ++r) sum = sum + Vectorized<T>::loadu(from + r * columns);
        sum.store(some);
        for (int64_t m = 0; m < lanes; ++m) to[m * d_cols.stride + clamp(lowest, d_cols.width)] += some[m];
        return;
      }
      for (int64_t m = 0; m < lanes && j + m < keys; ++m, to += d_cols.stride)
        for (int64_t r = 0; r < lanes && i + r < rows; ++r)
          to[clamp(lowest + lanes - 1 - r + m, d_cols.width)] += from[r * columns + m];
    });
  }

  bool tables() const { return d_table_ != nullptr || d_tails_ != nullptr; }

  // Add gradients [first, last) to the table, where number 0 would be at distance `lowest`.
  void add_by_distance(const T* gradient, int64_t first, int64_t last, int64_t lowest) {
    const int64_t width = this->call_.width, entry = lowest + this->call_.left;
    const int64_t begin = clamp(-entry, first, last), end = clamp(width - entry, begin, last);
    if (d_table_ != nullptr) {
      for (int64_t u = first; u < begin; ++u) d_table_[0] += double(gradient[u]);
      for (int64_t u = begin; u < end; ++u) d_table_[entry + u] += double(gradient[u]);
      for (int64_t u = end; u < last; ++u) d_table_[width - 1] += double(gradient[u]);
    }
    if (d_tails_ != nullptr) {
      for (int64_t u = first; u < begin; ++u) d_tails_[0] += double(gradient[u]) * double(-entry - u);
      for (int64_t u = end; u < last; ++u) d_tails_[1] += double(gradient[u]) * double(entry + u - (width - 1));
    }
  }

  bool curved() const { return d_level_ != nullptr || d_base_ != nullptr || d_slope_ != nullptr || d_rate_ != nullptr; }

  // The gradients of the curve from columns [first, last) of a row; `apart` is the distance of column 0.
  template <typename Level>
  void curve(int64_t i, const T* gradient, int64_t first, int64_t last, int64_t apart, const Level& level) {
    const int64_t query = this->tile_->q->begin + i, most = this->call_.curve_width - 1;
    const T rate = this->rate(query), *slope = static_cast<const T*>(this->call_.curve_slope) + this->h_curve_;
    this->each_piece(query, first, last, apart, [&](const auto& piece) {
      double product = 0;
      for (int64_t j = piece.first; j < piece.last; ++j) product += double(gradient[j]) * double(level(j));
      if (d_base_ != nullptr) d_base_[piece.index] += double(total_of(gradient, piece.first, piece.last));
      if (d_slope_ != nullptr) d_slope_[piece.index] += product * double(rate);
      if (d_rate_ != nullptr) d_rate_[query] += product * double(slope[piece.index]);
      if (d_level_ != nullptr)
        for (int64_t j = piece.first; j < piece.last; ++j)
          d_level_[std::min(std::abs(apart + j), most)] += double(gradient[j]) * double(piece.slope);
    });
  }

  void irregular(int64_t i, const T* gradient) {
    const bool slopes = d_q_slopes_ != nullptr || d_k_slopes_ != nullptr;
    if (!tables() && !d_rows && !d_cols && !slopes && !curved()) return;
    const int64_t query = this->tile_->q->begin + i, keys = this->tile_->k->begin;
    this->each_stretch(i, [&](int64_t first, int64_t last, int64_t apart) {
      if (tables())
        this->each_image_row(this->q_pos_[query], first, last, apart, [&](int64_t first, int64_t last, int64_t apart) {
          add_by_distance(gradient, first, last, apart);
        });
      if (curved()) curve(i, gradient, first, last, apart, [&](int64_t j) { return this->level(std::abs(apart + j)); });
      if (d_rows) add_to_table(d_rows.of(query), gradient, d_rows.width, first, last, apart + d_rows.left);
      for (int64_t j = first; d_cols && j < last; ++j)
        d_cols.of(keys + j)[clamp(apart + j + d_cols.left, d_cols.width)] += gradient[j];
      for (int64_t j = first; slopes && j < last; ++j) {
        const T away = T(std::abs(apart + j));
        if (d_q_slopes_ != nullptr) d_q_slopes_[query] += away * gradient[j];
        if (d_k_slopes_ != nullptr) d_k_slopes_[keys + j] += away * gradient[j];
      }
    });
  }

  double *d_table_ = nullptr, *d_tails_ = nullptr, *d_level_ = nullptr, *d_base_ = nullptr, *d_slope_ = nullptr;
  double* d_rate_ = nullptr;
  double* d_per_key_ = nullptr;
  T *d_pairs_ = nullptr, *sums_ = nullptr, *by_key_ = nullptr, *d_q_slopes_ = nullptr, *d_k_slopes_ = nullptr;
  double total_ = 0;
};

// The tables of some tokens of a group of heads, which are products, and their gradients, in a task of backward.
template <typename T>
class Multiplied {
 public:
  Multiplied(const Products<T>& products, bool differentiable, int64_t heads, int64_t tokens, Scratch& room)
      : products_(products), size_(tokens * products.stride) {
    if (!products) return;
    tables_ = room.take<T>(heads * size_);
    room_ = room.take<T>(products.room());
    if (!differentiable) return;
    gradients_ = room.take<T>(heads * size_);
    gathered_ = room.take<T>(heads * products.gathered());
    std::fill_n(gathered_, heads * products.gathered(), T(0));
  }

  // What it takes of a scratch.
  static size_t bytes(const Products<T>& products, int64_t heads, int64_t tokens) {
    if (!products) return 0;
    return sizeof(T) * (heads * (2 * tokens * products.stride + products.gathered()) + products.room()) + 64 * 4;
  }

  // Compute the tables of tokens [begin, begin + tokens) of head g of the group, h of the call; no gradients yet.
  void compute(int64_t g, int64_t b, int64_t h, int64_t begin, int64_t tokens) {
    products_.tables(b, h, begin, tokens, tables_ + g * size_, room_);
    if (gradients_ != nullptr) products_.clear(b, begin, tokens, gradients_ + g * size_);
  }
  // Those tables, for tokens that are counted from `begin`.
  Tables<T> tables(int64_t g, int64_t begin) const { return at(tables_, g, begin); }
  Tables<T> gradients(int64_t g, int64_t begin) const { return at(gradients_, g, begin); }

  // Pass on the gradients of the tables that were computed last.
  void differentiate(int64_t g, int64_t split, int64_t b, int64_t h, int64_t begin, int64_t tokens) {
    if (gradients_ != nullptr)
      products_.differentiate(
          split, b, h, begin, tokens, gradients_ + g * size_, gathered_ + g * products_.gathered(), room_);
  }
  void write(int64_t g, int64_t split, int64_t b, int64_t h) const {
    if (gradients_ != nullptr) products_.write(split, b, h, gathered_ + g * products_.gathered());
  }

 private:
  Tables<T> at(T* start, int64_t g, int64_t begin) const {
    return {start + g * size_ - begin * products_.stride, products_.stride, products_.width, products_.left};
  }

  const Products<T>& products_;
  const int64_t size_;
  T *tables_ = nullptr, *gradients_ = nullptr, *gathered_ = nullptr, *room_ = nullptr;
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
  const Products<T>&rows_tables = *shared.rows, &cols_tables = *shared.cols, &values = *shared.values;
  const int64_t wide_d = round_up(call.dim, LANES<T>), wide_v = round_up(call.dim_v, LANES<T>);
  const int64_t group = call.heads / call.kv_heads;
  const int64_t columns = std::min(KEYS, round_up(call.keys, PANEL<T>)), tile_rows = std::min(QUERIES, call.queries);
  const int64_t padded_rows = round_up(tile_rows, LANES<T>);  // gradients of a tile are read in whole blocks
  const size_t bytes =
      sizeof(T) * (columns * (3 * wide_d + 3 * wide_v) + tile_rows * (wide_d + wide_v) +
                   (2 * padded_rows + 1) * columns + Gradients<T>::sums(call, tile_rows, columns) +
                   (call.softcap != 0 ? padded_rows * columns : 0) + Terms<T>::room(call, tile_rows, columns)) +
      64 * 16 + Altered<T>::bytes(call, tile_rows, columns) + Multiplied<T>::bytes(rows_tables, group, call.queries) +
      Multiplied<T>::bytes(cols_tables, group, columns) + Multiplied<T>::bytes(values, group, call.queries);
  const bool d_rows_needed = call.d_rows_x != nullptr || call.d_rows_vectors != nullptr,
             d_cols_needed = call.d_cols_x != nullptr || call.d_cols_vectors != nullptr;
  const T scale = T(call.scale);

  // number of blocks of keys that a span of queries sees, these and others
  std::vector<std::vector<int64_t>> blocks = blocks_seen(call, shared);
  for (auto& of_spans : blocks)
    for (int64_t& seen : of_spans) seen += call.some_keys;
  std::vector<Query<T>> queries(call.batch * call.heads * call.queries);
  std::vector<std::vector<T>> least(call.batch * call.heads);  // lowest logarithm of a sum, per span of queries
  at::parallel_for(0, call.batch * call.heads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t bh = begin; bh < end; ++bh) {
      const T* sums = static_cast<const T*>(call.sums) + bh * call.queries * 2;
      const std::vector<Span>& q_spans = shared.q[bh / call.heads];
      for (size_t iq = 0; iq < q_spans.size(); ++iq) {
        summarise<T, In>(call, bh, q_spans[iq], sums, blocks[bh][iq] == 1, queries.data() + bh * call.queries);
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
          if (!shared.look(call, b, h, iq, ik, tile)) continue;
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
    T *weights = room.take<T>(padded_rows * columns), *gradients = room.take<T>(padded_rows * columns),
      *row_room = room.take<T>(columns);
    T *tile_room = room.take<T>(Terms<T>::room(call, tile_rows, columns)),
      *sums = room.take<T>(Gradients<T>::sums(call, tile_rows, columns));
    T* caps = call.softcap != 0 ? room.take<T>(padded_rows * columns) : nullptr;
    Altered<T> altered(call, b, split, room, tile_rows, columns);
    std::vector<Gradients<T>> terms;
    for (int64_t h = h_kv * group; h < (h_kv + 1) * group; ++h) terms.emplace_back(call, b, h, split);
    Multiplied<T> rows_of_heads(rows_tables, d_rows_needed, group, call.queries, room),
        cols_of_heads(cols_tables, d_cols_needed, group, columns, room),
        // of values: the gradients of weights, and the weights, by distance
        shares_of_heads(values, call.d_values_vectors != nullptr, group, call.queries, room);
    for (int64_t g = 0; values && g < group; ++g) shares_of_heads.compute(g, b, h_kv * group + g, 0, call.queries);
    if (rows_tables)
      for (int64_t g = 0; g < group; ++g) {
        rows_of_heads.compute(g, b, h_kv * group + g, 0, call.queries);
        terms[g].set_rows(rows_of_heads.tables(g, 0));
        if (d_rows_needed) terms[g].d_rows = rows_of_heads.gradients(g, 0);
      }

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
        if (altered.on && next == held) altered.leave(keys, d_k);
        if (cols_tables && next == held)
          for (int64_t g = 0; g < group; ++g)
            cols_of_heads.differentiate(g, 0, b, h_kv * group + g, keys.begin, keys.size());
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
        if (altered.on)
          altered.enter(k_room, keys, h_kv);
        else
          transpose<T>(k_panel, k_room, wide_d, keys.size(), call.dim);
        transpose<T>(v_panel, v_room, wide_v, keys.size(), call.dim_v);
        std::fill(d_k, d_k + columns * wide_d, T(0));
        std::fill(d_v, d_v + columns * wide_v, T(0));
        for (int64_t g = 0; cols_tables && g < group; ++g) {
          cols_of_heads.compute(g, b, h_kv * group + g, keys.begin, keys.size());
          terms[g].set_cols(cols_of_heads.tables(g, keys.begin));
          if (d_cols_needed) terms[g].d_cols = cols_of_heads.gradients(g, keys.begin);
        }
      }
      const int64_t rows = tile.rows(), width = tile.last - tile.first, query = tile.q->begin, bh = b * call.heads + h;
      const Rows<T> q = rows_of<T>(
          at_row<In>(call.q, b, call.q_batch, h, call.q_head, query, call.q_row), call.q_row, rows, call.dim, wide_d,
          q_room);
      const Rows<T> grad = rows_of<T>(
          at_row<In>(call.grad, b, call.grad_batch, h, call.grad_head, query, call.grad_row), call.grad_row, rows,
          call.dim_v, wide_v, grad_room);
      if (altered.on)
        altered.scores(tile, q.start, q.stride, weights, columns);
      else
        product<T>(
            rows, tile.wide - tile.first, call.dim, q.start, q.stride, 1, k_panel + tile.first * call.dim, PANEL<T>,
            call.dim * PANEL<T>, weights + tile.first, columns, false);
      product<T>(
          rows, tile.wide - tile.first, call.dim_v, grad.start, grad.stride, 1, v_panel + tile.first * call.dim_v,
          PANEL<T>, call.dim_v * PANEL<T>, gradients + tile.first, columns, false);
      Gradients<T>& head = terms[h - h_kv * group];
      const Dropout dropout(call, b, h);
      head.enter(tile, columns, tile_room, sums);
      for (int64_t i = 0; i < rows; ++i) {
        T *weight = weights + i * columns, *gradient = gradients + i * columns;
        if (caps != nullptr) cap<T>(weight, tile.first, tile.wide, T(call.softcap), caps + i * columns);
        if (values) {
          const T* table = shares_of_heads.tables(h - h_kv * group, 0).of(query + i);
          head.by_distance(i, [&](int64_t first, int64_t last, int64_t distance) {
            add_table(gradient, gradient, table, values.width, first, last, distance + values.left);
          });
        }
        if (dropout.on) dropout.apply(gradient, query + i, tile.k->begin, tile.first, tile.wide);
        const T sum = differentiate<T>(
            weight, gradient, tile.first, tile.wide, head.of_row(i, row_room), queries[bh * call.queries + query + i],
            blocks[bh][iq] == 1);
        head.add(i, gradient, sum);
        if (dropout.on) dropout.apply(weight, query + i, tile.k->begin, tile.first, tile.wide);
        if (call.d_values_vectors != nullptr) {
          T* share = shares_of_heads.gradients(h - h_kv * group, 0).of(query + i);
          head.by_distance(i, [&](int64_t first, int64_t last, int64_t distance) {
            add_to_table(share, weight, values.width, first, last, distance + values.left);
          });
        }
      }
      head.leave(gradients, columns);
      for (int64_t i = 0; caps != nullptr && i < rows; ++i)
        for (int64_t j = tile.first; j < tile.wide; ++j) gradients[i * columns + j] *= caps[i * columns + j];
      product<T>(
          width, wide_v, rows, weights + tile.first, 1, columns, grad.start, grad.stride, PANEL<T>,
          d_v + tile.first * wide_v, wide_v, true);
      char& started = begun[(h - h_kv * group) * some_queries + iq];
      T* d_q = d_q_of(h, query);
      if (altered.on) {
        for (int64_t i = 0; i < rows && !started; ++i) std::fill_n(d_q + i * call.d_q_row, wide_d, T(0));
        altered.gradients(tile, gradients, columns, q.start, q.stride, d_q, call.d_q_row, d_k);
      } else {
        product<T>(
            width, wide_d, rows, gradients + tile.first, 1, columns, q.start, q.stride, PANEL<T>,
            d_k + tile.first * wide_d, wide_d, true);
        product<T>(
            rows, wide_d, width, gradients + tile.first, columns, 1, k_room + tile.first * wide_d, wide_d, PANEL<T>,
            d_q, call.d_q_row, started);
      }
      started = 1;
    });
    write_until(some_keys);
    for (int64_t g = 0; g < group; ++g) {
      rows_of_heads.differentiate(g, split, b, h_kv * group + g, 0, call.queries);
      shares_of_heads.differentiate(g, split, b, h_kv * group + g, 0, call.queries);
      shares_of_heads.write(g, split, b, h_kv * group + g);
      rows_of_heads.write(g, split, b, h_kv * group + g);
      cols_of_heads.write(g, split, b, h_kv * group + g);
    }
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

}  // namespace headway

extern "C" int headway_forward(const headway::Call* call, int kind, char* message) {
  return headway::by_kind(kind, message, [&]<typename T, typename In>() { headway::forward<T, In>(*call); });
}

extern "C" int headway_backward(const headway::Call* call, int kind, char* message) {
  return headway::by_kind(kind, message, [&]<typename T, typename In>() { headway::backward<T, In>(*call); });
}

extern "C" int headway_step(headway::step::Call* step, int kind, char* message) {
  using namespace headway;
  return by_kind(kind, message, [&]<typename T, typename In>() {
    headway::Call& attention = *static_cast<headway::Call*>(step->attention);
    step->outcome = step::REFUSED;
    if (step->filled != nullptr) step->length = *step->filled;
    if (step->length >= step->room || !step::place(*step, attention.batch)) return;
    step::append<T, In>(*step, attention);
    attention.keys = step->length + 1;
    if (step->filled != nullptr) ++*step->filled;
    forward<T, In>(attention);
    step->outcome = step::finite<T, In>(attention) ? step::DONE : step::NOT_FINITE;
  });
}

// Lets Python check that both sides have the same layout.
extern "C" int64_t step_size() { return sizeof(headway::step::Call); }
extern "C" int64_t call_size() { return sizeof(headway::Call); }
