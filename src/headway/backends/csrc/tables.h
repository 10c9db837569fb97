// Tables by distance of each query or key of a head: given, or products of its vector with one vector per distance.
#pragma once

#include "call.h"
#include "dense.h"

#include <ATen/Parallel.h>

#include <memory>
#include <vector>

namespace headway {

// Entry clamp(distance + left) of a token's table.
template <typename T>
struct Tables {
  T* start = nullptr;  // of token 0
  int64_t stride = 0, width = 0, left = 0;

  T* of(int64_t token) const { return start + token * stride; }
  explicit operator bool() const { return start != nullptr; }
};

// The tokens of a call that have tables, its queries or its keys, and where these come from.
struct Side {
  bool queries;
  int64_t tokens;
  const void* table;
  int64_t batch, head, row, width, left;
  const void *x, *vectors;
  const int64_t* index;
  int64_t x_batch, x_head, x_row, dim, vectors_head, entries;
  void *d_x, *d_vectors;

  bool multiplies() const { return vectors != nullptr; }
};

inline Side queries_of(const Call& c) {
  return {true,           c.queries,      c.rows,          c.rows_batch,
          c.rows_head,    c.rows_row,     c.rows_width,    c.rows_left,
          c.rows_x,       c.rows_vectors, c.rows_index,    c.rows_x_batch,
          c.rows_x_head,  c.rows_x_row,   c.rows_dim,      c.rows_vectors_head,
          c.rows_entries, c.d_rows_x,     c.d_rows_vectors};
}

inline Side keys_of(const Call& c) {
  return {false,           c.keys,       c.cols,     c.cols_batch,        c.cols_head,    c.cols_row,
          c.cols_width,    c.cols_left,  c.cols_x,   c.cols_vectors,      c.cols_index,   c.cols_x_batch,
          c.cols_x_head,   c.cols_x_row, c.cols_dim, c.cols_vectors_head, c.cols_entries, c.d_cols_x,
          c.d_cols_vectors};
}

// The vectors that are added to values: to the output, Σ weights by distance · vectors. Their x is the output's
// gradient.
inline Side values_of(const Call& c) {
  Side side{};
  side.queries = true;
  side.tokens = c.queries;
  side.width = c.values_width;
  side.left = c.values_left;
  side.x = c.values_x;
  side.vectors = c.values_vectors;
  side.x_batch = c.values_x_batch;
  side.x_head = c.values_x_head;
  side.x_row = c.values_x_row;
  side.dim = c.values_dim;
  side.vectors_head = c.values_vectors_head;
  side.entries = c.values_entries;
  side.d_vectors = c.d_values_vectors;
  return side;
}

// Columns [first, last) of a row: those of `base`, which may be the row itself, and a table; `entry` is that of column
// 0.
template <typename T>
void add_table(T* row, const T* base, const T* table, int64_t width, int64_t first, int64_t last, int64_t entry) {
  const int64_t begin = std::min(std::max(-entry, first), last), end = std::min(std::max(width - entry, begin), last);
  for (int64_t j = first; j < begin; ++j) row[j] = base[j] + table[0];
  for (int64_t j = begin; j < end; ++j) row[j] = base[j] + table[entry + j];
  for (int64_t j = end; j < last; ++j) row[j] = base[j] + table[width - 1];
}

// The reverse: add columns [first, last) of a row to a table.
template <typename T>
void add_to_table(T* table, const T* row, int64_t width, int64_t first, int64_t last, int64_t entry) {
  const int64_t begin = std::min(std::max(-entry, first), last), end = std::min(std::max(width - entry, begin), last);
  table[0] += total_of(row, first, begin);
  for (int64_t j = begin; j < end; ++j) table[entry + j] += row[j];
  table[width - 1] += total_of(row, end, last);
}

template <typename T>
Tables<T> given(const Side& side, int64_t b, int64_t h) {
  if (side.table == nullptr) return {};
  const T* start = static_cast<const T*>(side.table) + b * side.batch + h * side.head;
  return {const_cast<T*>(start), side.row, side.width, side.left};
}

template <typename T>
std::unique_ptr<T[]> uninitialised(int64_t count) {
  return std::unique_ptr<T[]>(new T[count]);
}

// Whole numbers from low to high, none if low > high.
struct Range {
  int64_t low = std::numeric_limits<int64_t>::max(), high = std::numeric_limits<int64_t>::min();

  bool empty() const { return low > high; }
  int64_t size() const { return high - low + 1; }
  Range with(Range other) const { return {std::min(low, other.low), std::max(high, other.high)}; }
};

// Computes tables x · vectors, a block of tokens at a time, for the distances that some pair has: of a block, only the
// entries that it reaches. The others are left as they are, and may be anything.
template <typename T>
class Products {
 public:
  // Tokens of a block.
  static constexpr int64_t STEP = 96;

  // The positions of each sequence's queries and keys are needed as ranges, too, and read as long as this is used.
  Products(const Call& call, const Side& side, const std::vector<Range>& queries, const std::vector<Range>& keys)
      : call_(call), side_(side), others_(side.queries ? keys : queries) {
    if (!side.multiplies()) return;
    Range all;
    for (int64_t b = 0; b < call.batch; ++b) all = all.with(reached(b, side.queries ? queries[b] : keys[b]));
    if (all.empty()) all = {0, 0};
    low_ = all.low;
    width = all.size();
    left = side.left - low_;
    for (int64_t d = 0; d < width && side.index != nullptr; ++d) {
      const int64_t entry = side.index[low_ + d];
      if (!runs_.empty() && runs_.back().takes(d, entry))
        runs_.back().add(entry);
      else
        runs_.push_back({d, d + 1, entry, 0});
    }
    const Range kept = entries({0, width - 1});
    first_ = kept.low;
    count_ = kept.size();
    for (Run& run : runs_) run.entry -= first_;
    wide_ = round_up(side.dim, LANES<T>);
    columns_ = apart(count_);
    stride = side.index == nullptr ? columns_ : apart(width);
    const int64_t kinds = side.vectors_head == 0 ? 1 : call.heads, padded = round_up(count_, PANEL<T>);
    const bool packed = side.tokens > FEW;
    if (!packed && wide_ == side.dim) {  // as they are
      source_ = static_cast<const T*>(side.vectors) + first_ * side.dim;
      source_head_ = side.vectors_head;
      return;
    }
    rows_ = uninitialised<T>(kinds * padded * wide_);
    source_ = rows_.get();
    source_head_ = side.vectors_head == 0 ? 0 : padded * wide_;
    if (packed) panels_ = uninitialised<T>(kinds * padded * side.dim);
    at::parallel_for(0, kinds, 1, [&](int64_t begin, int64_t end) {
      for (int64_t h = begin; h < end; ++h) {
        const T* from = static_cast<const T*>(side.vectors) + h * side.vectors_head + first_ * side.dim;
        T* rows = rows_.get() + h * padded * wide_;
        pack<T, T>(rows, wide_, from, side.dim, count_, side.dim, T(1));
        if (!packed) continue;
        std::fill(rows + count_ * wide_, rows + padded * wide_, T(0));
        transpose<T>(panels_.get() + h * padded * side.dim, rows, wide_, padded, side.dim);
      }
    });
  }

  explicit operator bool() const { return side_.multiplies(); }

  // Room that the functions below need.
  int64_t room() const { return *this ? STEP * (columns_ + 2 * wide_) : 0; }

  // The tables of tokens [begin, begin + tokens) at `to`, `stride` apart.
  void tables(int64_t b, int64_t h, int64_t begin, int64_t tokens, T* to, T* room) const {
    each_block(b, begin, tokens, [&](int64_t t, int64_t some, Range reach) {
      some_tables(b, h, begin + t, some, reach, to + t * stride, room);
    });
  }

  // Entries of tables to zero, as far as they are reached.
  void clear(int64_t b, int64_t begin, int64_t tokens, T* tables) const {
    each_block(b, begin, tokens, [&](int64_t t, int64_t some, Range reach) {
      for (T* row = tables + t * stride; some > 0; --some, row += stride)
        std::fill(row + reach.low, row + reach.high + 1, T(0));
    });
  }

  // The product of one token's vector with that of a distance's entry.
  T single(int64_t b, int64_t h, int64_t token, int64_t entry) const {
    const T *x = vectors_of(b, h, token), *vector = rows(h) + (row_of(entry)) * wide_;
    T sum = 0;
    for (int64_t d = 0; d < side_.dim; ++d) sum += x[d] * vector[d];
    return sum;
  }

  // Add tables · vectors, the reverse of `tables`, to rows of width round_up(dim, lanes).
  void combine(int64_t b, int64_t h, int64_t begin, int64_t tokens, const T* tables, T* to, int64_t to_row) const {
    each_block(b, begin, tokens, [&](int64_t t, int64_t some, Range reach) {
      product<T>(
          some, wide_, reach.size(), tables + t * stride + reach.low, stride, 1, rows(h) + reach.low * wide_, wide_,
          PANEL<T>, to + t * to_row, to_row, true);
    });
  }

  // Values that gather the gradient of the vectors, see `differentiate`.
  int64_t gathered() const { return count_ * wide_; }

  // From the gradients of tokens' tables: d_x of these tokens, split `split` of the call's; d_vectors is added to.
  void differentiate(
      int64_t split, int64_t b, int64_t h, int64_t begin, int64_t tokens, const T* d_tables, T* d_vectors,
      T* room) const {
    each_block(b, begin, tokens, [&](int64_t t, int64_t some, Range reach) {
      differentiate_some(split, b, h, begin + t, some, reach, d_tables + t * stride, d_vectors, room);
    });
  }

  // Write what `differentiate` gathered to the call's gradient, and zeros for the vectors that no pair needs.
  void write(int64_t split, int64_t b, int64_t h, const T* d_vectors) const {
    if (side_.d_vectors == nullptr) return;
    T* to =
        static_cast<T*>(side_.d_vectors) + ((split * call_.batch + b) * call_.heads + h) * side_.entries * side_.dim;
    to = std::fill_n(to, first_ * side_.dim, T(0));
    for (int64_t e = 0; e < count_; ++e) to = std::copy_n(d_vectors + e * wide_, side_.dim, to);
    std::fill_n(to, (side_.entries - first_ - count_) * side_.dim, T(0));
  }

  int64_t width = 0, left = 0, stride = 0;

 private:
  // Neighbouring distances [begin, end) whose entries in `index` are `entry`, entry + step, entry + 2 step …
  struct Run {
    int64_t begin, end, entry, step;

    bool takes(int64_t d, int64_t next) const {
      const int64_t size = end - begin, jump = next - (entry + (size - 1) * step);
      return d == end && (size == 1 ? std::abs(jump) <= 1 : jump == step);
    }
    void add(int64_t next) {
      if (end - begin == 1) step = next - entry;
      ++end;
    }
    // what of it lies in a range of distances
    Run within(Range reach) const {
      const int64_t from = std::max(begin, reach.low);
      return {from, std::max(from, std::min(end, reach.high + 1)), entry + (from - begin) * step, step};
    }
  };

  // Rows whose distance is a power of two would share few sets of the cache.
  static int64_t apart(int64_t width) {
    width = round_up(width, LANES<T>);
    return width % 64 == 0 ? width + LANES<T> : width;
  }

  // The entries of the table that some tokens reach, before `low_` is known.
  Range reached(int64_t b, int64_t begin, int64_t tokens) const {
    const int64_t* pos = side_.queries ? call_.q_pos + b * call_.q_pos_batch : call_.k_pos + b * call_.k_pos_batch;
    Range own;
    for (int64_t i = begin; i < begin + tokens; ++i) {
      own.low = std::min(own.low, pos[i] < 0 ? own.low : pos[i]);
      own.high = std::max(own.high, pos[i] < 0 ? own.high : pos[i]);
    }
    return reached(b, own);
  }
  // The same for tokens at these positions.
  Range reached(int64_t b, Range own) const {
    const Range other = others_[b];
    if (own.empty() || other.empty()) return {};
    const Range q = side_.queries ? own : other, k = side_.queries ? other : own;
    const int64_t least = std::max(k.low - q.high, -call_.past), most = std::min(k.high - q.low, call_.future);
    if (least > most) return {};
    const auto entry = [&](int64_t distance) {
      return std::min(std::max<int64_t>(distance + side_.left, 0), side_.width - 1);
    };
    return {entry(least), entry(most)};
  }

  // The vectors that some distances need, counted from `first_`.
  Range entries(Range reach) const {
    if (side_.index == nullptr) return {reach.low + low_ - first_, reach.high + low_ - first_};
    Range found;
    for (const Run& whole : runs_) {
      const Run run = whole.within(reach);
      if (run.begin == run.end) continue;
      const int64_t last = run.entry + (run.end - 1 - run.begin) * run.step;
      found = found.with({std::min(run.entry, last), std::max(run.entry, last)});
    }
    return found;
  }

  // Work on blocks of tokens, each with the number of its first, its size and what it reaches.
  template <typename Work>
  void each_block(int64_t b, int64_t begin, int64_t tokens, const Work& work) const {
    for (int64_t t = 0; t < tokens; t += STEP) {
      const int64_t some = std::min(STEP, tokens - t);
      const Range reach = reached(b, begin + t, some);
      if (!reach.empty()) work(t, some, Range{reach.low - low_, reach.high - low_});
    }
  }

  void some_tables(int64_t b, int64_t h, int64_t begin, int64_t tokens, Range reach, T* to, T* room) const {
    const T* x = vectors_of(b, h, begin);
    T* products = side_.index == nullptr ? to : room;
    const Range needed = entries(reach);
    const int64_t first = needed.low / PANEL<T> * PANEL<T>, count = needed.high + 1 - first;  // in whole panels
    if (tokens <= FEW) {
      T* packed = room + tokens * columns_;
      pack<T, T>(packed, wide_, x, side_.x_row, tokens, side_.dim, T(1));
      products_of_few<T>(
          tokens, count, wide_, T(1), packed, wide_, rows(h) + first * wide_, wide_, products + first, columns_);
    } else {
      const int64_t padded = round_up(count_, PANEL<T>), kind = side_.vectors_head == 0 ? 0 : h;
      product<T>(
          tokens, round_up(count, LANES<T>), side_.dim, x, side_.x_row, 1,
          panels_.get() + (kind * padded + first) * side_.dim, PANEL<T>, side_.dim * PANEL<T>, products + first,
          columns_, false);
    }
    for (const Run& whole : runs_) {
      const Run run = whole.within(reach);
      for (int64_t t = 0; t < tokens; ++t) {
        T* table = to + t * stride;
        const T* from = products + t * columns_ + run.entry;
        if (run.step == 0) std::fill(table + run.begin, table + run.end, *from);
        if (run.step > 0) std::copy_n(from, run.end - run.begin, table + run.begin);
        if (run.step < 0)
          for (int64_t d = run.begin; d < run.end; ++d) table[d] = from[run.begin - d];
      }
    }
  }

  void differentiate_some(
      int64_t split, int64_t b, int64_t h, int64_t begin, int64_t tokens, Range reach, const T* d_tables, T* d_vectors,
      T* room) const {
    const Range needed = entries(reach);
    const T* gradients = d_tables;
    T *folded = room, *packed = room + tokens * columns_, *d_x = packed + tokens * wide_;
    if (side_.index != nullptr) {
      for (int64_t t = 0; t < tokens; ++t) std::fill_n(folded + t * columns_ + needed.low, needed.size(), T(0));
      for (const Run& whole : runs_) {
        const Run run = whole.within(reach);
        for (int64_t t = 0; t < tokens; ++t) {
          const T* table = d_tables + t * stride;
          T* sums = folded + t * columns_ + run.entry;
          if (run.step == 0) *sums += total_of(table, run.begin, run.end);
          if (run.step > 0)
            for (int64_t d = run.begin; d < run.end; ++d) sums[d - run.begin] += table[d];
          if (run.step < 0)
            for (int64_t d = run.begin; d < run.end; ++d) sums[run.begin - d] += table[d];
        }
      }
      gradients = folded;
    }
    gradients += needed.low;
    if (side_.d_vectors != nullptr) {
      pack<T, T>(packed, wide_, vectors_of(b, h, begin), side_.x_row, tokens, side_.dim, T(1));
      product<T>(
          needed.size(), wide_, tokens, gradients, 1, columns_, packed, wide_, PANEL<T>, d_vectors + needed.low * wide_,
          wide_, true);
    }
    if (side_.d_x != nullptr) {
      product<T>(
          tokens, wide_, needed.size(), gradients, columns_, 1, rows(h) + needed.low * wide_, wide_, PANEL<T>, d_x,
          wide_, false);
      T* to = static_cast<T*>(side_.d_x) +
              (((split * call_.batch + b) * call_.heads + h) * side_.tokens + begin) * side_.dim;
      for (int64_t t = 0; t < tokens; ++t) std::copy_n(d_x + t * wide_, side_.dim, to + t * side_.dim);
    }
  }

  const T* vectors_of(int64_t b, int64_t h, int64_t token) const {
    return static_cast<const T*>(side_.x) + b * side_.x_batch + h * side_.x_head + token * side_.x_row;
  }
  const T* rows(int64_t h) const { return source_ + h * source_head_; }
  int64_t row_of(int64_t entry) const { return side_.index == nullptr ? entry : side_.index[low_ + entry] - first_; }

  const Call& call_;
  const Side side_;
  const std::vector<Range>& others_;  // by sequence, the positions of the other side's tokens
  std::vector<Run> runs_;             // of `index`
  int64_t low_ = 0, first_ = 0, count_ = 0, wide_ = 0, columns_ = 0;
  std::unique_ptr<T[]> rows_, panels_;
  const T* source_ = nullptr;  // vector 0 of head 0, those of the other heads source_head_ apart
  int64_t source_head_ = 0;
};

}  // namespace headway
