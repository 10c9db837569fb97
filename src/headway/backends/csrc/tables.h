// Tables by distance of each query or key of a head: given, or products of its vector with one vector per distance.
#pragma once

#include "call.h"
#include "dense.h"

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
  return {c.queries,    c.rows,     c.rows_batch,        c.rows_head,    c.rows_row,     c.rows_width,
          c.rows_left,  c.rows_x,   c.rows_vectors,      c.rows_index,   c.rows_x_batch, c.rows_x_head,
          c.rows_x_row, c.rows_dim, c.rows_vectors_head, c.rows_entries, c.d_rows_x,     c.d_rows_vectors};
}

inline Side keys_of(const Call& c) {
  return {c.keys,       c.cols,     c.cols_batch,        c.cols_head,    c.cols_row,     c.cols_width,
          c.cols_left,  c.cols_x,   c.cols_vectors,      c.cols_index,   c.cols_x_batch, c.cols_x_head,
          c.cols_x_row, c.cols_dim, c.cols_vectors_head, c.cols_entries, c.d_cols_x,     c.d_cols_vectors};
}

// The vectors that are added to values: to the output, Σ weights by distance · vectors. Their x is the output's
// gradient.
inline Side values_of(const Call& c) {
  Side side{};
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

// Add a table to columns [first, last) of a row; `entry` is that of column 0.
template <typename T>
void add_table(T* row, const T* table, int64_t width, int64_t first, int64_t last, int64_t entry) {
  const int64_t begin = std::min(std::max(-entry, first), last), end = std::min(std::max(width - entry, begin), last);
  for (int64_t j = first; j < begin; ++j) row[j] += table[0];
  for (int64_t j = begin; j < end; ++j) row[j] += table[entry + j];
  for (int64_t j = end; j < last; ++j) row[j] += table[width - 1];
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

// Computes tables x · vectors, a block of tokens at a time, for the distances [least, most] that some pair has.
template <typename T>
class Products {
 public:
  Products(const Side& side, int64_t heads, int64_t least, int64_t most) : side_(side) {
    if (!side.multiplies()) return;
    const auto entry = [&](int64_t distance) {
      return std::min(std::max<int64_t>(distance + side.left, 0), side.width - 1);
    };
    low_ = entry(least);
    width = std::max(entry(most) - low_ + 1, int64_t(1));
    left = side.left - low_;
    int64_t last = low_ + width - 1;
    first_ = low_;
    if (side.index != nullptr) {
      const auto ends = std::minmax_element(side.index + low_, side.index + low_ + width);
      first_ = *ends.first;
      last = *ends.second;
    }
    count_ = last - first_ + 1;
    wide_ = round_up(side.dim, LANES<T>);
    columns_ = round_up(count_, LANES<T>);
    stride = side.index == nullptr ? columns_ : round_up(width, LANES<T>);
    const int64_t kinds = side.vectors_head == 0 ? 1 : heads, padded = round_up(count_, PANEL<T>);
    rows_ = uninitialised<T>(kinds * padded * wide_);
    panels_ = uninitialised<T>(kinds * padded * side.dim);
    for (int64_t h = 0; h < kinds; ++h) {
      const T* from = static_cast<const T*>(side.vectors) + h * side.vectors_head + first_ * side.dim;
      T* rows = rows_.get() + h * padded * wide_;
      pack<T, T>(rows, wide_, from, side.dim, count_, side.dim, T(1));
      std::fill(rows + count_ * wide_, rows + padded * wide_, T(0));
      transpose<T>(panels_.get() + h * padded * side.dim, rows, wide_, padded, side.dim);
    }
  }

  explicit operator bool() const { return side_.multiplies(); }

  // Room that the functions below need for this many tokens.
  int64_t room(int64_t tokens) const { return tokens * (columns_ + 2 * wide_); }

  // The tables of tokens [begin, begin + tokens) at `to`, `stride` apart.
  void tables(int64_t b, int64_t h, int64_t begin, int64_t tokens, T* to, T* room) const {
    const T* x = vectors_of(b, h, begin);
    T* products = side_.index == nullptr ? to : room;
    if (tokens <= FEW) {
      T* packed = room + tokens * columns_;
      pack<T, T>(packed, wide_, x, side_.x_row, tokens, side_.dim, T(1));
      products_of_few<T>(tokens, count_, wide_, T(1), packed, wide_, rows(h), wide_, products, columns_);
    } else {
      const int64_t padded = round_up(count_, PANEL<T>), kind = side_.vectors_head == 0 ? 0 : h;
      product<T>(
          tokens, columns_, side_.dim, x, side_.x_row, 1, panels_.get() + kind * padded * side_.dim, PANEL<T>,
          side_.dim * PANEL<T>, products, columns_, false);
    }
    if (side_.index == nullptr) return;
    for (int64_t t = 0; t < tokens; ++t)
      for (int64_t d = 0; d < width; ++d) to[t * stride + d] = products[t * columns_ + side_.index[low_ + d] - first_];
  }

  // The product of one token's vector with that of a distance's entry.
  T single(int64_t b, int64_t h, int64_t token, int64_t entry) const {
    const T *x = vectors_of(b, h, token), *vector = rows(h) + (row_of(entry)) * wide_;
    T sum = 0;
    for (int64_t d = 0; d < side_.dim; ++d) sum += x[d] * vector[d];
    return sum;
  }

  // Add tables · vectors, the reverse of `tables`, to rows of width round_up(dim, lanes).
  void combine(int64_t h, const T* tables, int64_t tokens, T* to, int64_t to_row) const {
    product<T>(tokens, wide_, count_, tables, stride, 1, rows(h), wide_, PANEL<T>, to, to_row, true);
  }

  // Values that gather the gradient of the vectors, see `differentiate`.
  int64_t gathered() const { return count_ * wide_; }

  // From the gradients of tokens' tables: d_x of these tokens, split `split` of the call's; d_vectors is added to.
  void differentiate(
      const Call& call, int64_t split, int64_t b, int64_t h, int64_t begin, int64_t tokens, const T* d_tables,
      T* d_vectors, T* room) const {
    const T* gradients = d_tables;
    T *folded = room, *packed = room + tokens * columns_, *d_x = packed + tokens * wide_;
    if (side_.index != nullptr) {
      std::fill(folded, folded + tokens * columns_, T(0));
      for (int64_t t = 0; t < tokens; ++t)
        for (int64_t d = 0; d < width; ++d)
          folded[t * columns_ + side_.index[low_ + d] - first_] += d_tables[t * stride + d];
      gradients = folded;
    }
    if (side_.d_vectors != nullptr) {
      pack<T, T>(packed, wide_, vectors_of(b, h, begin), side_.x_row, tokens, side_.dim, T(1));
      product<T>(count_, wide_, tokens, gradients, 1, columns_, packed, wide_, PANEL<T>, d_vectors, wide_, true);
    }
    if (side_.d_x != nullptr) {
      product<T>(tokens, wide_, count_, gradients, columns_, 1, rows(h), wide_, PANEL<T>, d_x, wide_, false);
      T* to =
          static_cast<T*>(side_.d_x) + (((split * call.batch + b) * call.heads + h) * side_.tokens + begin) * side_.dim;
      for (int64_t t = 0; t < tokens; ++t) std::copy_n(d_x + t * wide_, side_.dim, to + t * side_.dim);
    }
  }

  // Write what `differentiate` gathered to the call's gradient.
  void write(const Call& call, int64_t split, int64_t b, int64_t h, const T* d_vectors) const {
    if (side_.d_vectors == nullptr) return;
    T* to = static_cast<T*>(side_.d_vectors) +
            (((split * call.batch + b) * call.heads + h) * side_.entries + first_) * side_.dim;
    for (int64_t e = 0; e < count_; ++e) std::copy_n(d_vectors + e * wide_, side_.dim, to + e * side_.dim);
  }

  int64_t width = 0, left = 0, stride = 0;

 private:
  const T* vectors_of(int64_t b, int64_t h, int64_t token) const {
    return static_cast<const T*>(side_.x) + b * side_.x_batch + h * side_.x_head + token * side_.x_row;
  }
  const T* rows(int64_t h) const {
    return rows_.get() + (side_.vectors_head == 0 ? 0 : h) * round_up(count_, PANEL<T>) * wide_;
  }
  int64_t row_of(int64_t entry) const { return side_.index == nullptr ? entry : side_.index[low_ + entry] - first_; }

  const Side side_;
  int64_t low_ = 0, first_ = 0, count_ = 0, wide_ = 0, columns_ = 0;
  std::unique_ptr<T[]> rows_, panels_;
};

}  // namespace headway
