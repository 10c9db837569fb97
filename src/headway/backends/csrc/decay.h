// Products of queries and keys of which each dimension is forgotten at its own pace, tile by tile:
//
//     score(i, j) = sum_d q_id k_jd exp(P_id - P_jd)
//
// P falls along the text. With the least P of a block of keys as its anchor A, exp(P_i - P_j) = exp(P_i - A) exp(A -
// P_j). Behind the block both factors are at most 1, and a tile is an ordinary product of scaled queries and scaled
// keys. Beside the diagonal, where the first factor of a strong gate would overflow, narrow pieces of the block have
// anchors of their own, and what is left of them is computed pair by pair.
//
// The gradient of P_i is what pairs of query i contribute, that of P_j the same of key j, negative; gates get sums of
// both in which most of it cancels. So gradients are sums of doubles, of the same numbers on either side.
#pragma once

#include "boost.h"

namespace headway {

template <typename T>
class Decays {
  using V = Vectorized<T>;
  static constexpr int64_t PIECE = std::max<int64_t>(PANEL<T>, 32);
  static constexpr double MOST = 60;   // the greatest exponent of a query's factor; exp(60) · exp(-60) is still exact
  static constexpr double LIMIT = 80;  // the greatest exponent of a pair, as of headway.terms.ChannelDecay

 public:
  static size_t bytes(const Call& call, int64_t rows, int64_t columns) {
    if (call.q_decay == nullptr) return 0;
    const int64_t wide = round_up(call.dim, LANES<T>);
    const int64_t keys = columns + PIECE + 2 * PANEL<T>;
    const size_t of_gradients = call.grad == nullptr ? 0 : sizeof(double) * (2 * wide * (rows + keys) + rows * columns);
    return sizeof(T) * wide * (2 + 2 * rows + 2 * keys) + sizeof(double) * 2 * wide + of_gradients + 64 * 20;
  }

  Decays(const Call& call, int64_t b, int64_t split, Scratch& room, int64_t rows, int64_t columns)
      : on(call.q_decay != nullptr), call_(call), b_(b), split_(split), wide_(round_up(call.dim, LANES<T>)) {
    if (!on) return;
    for (T** each : {&factor_, &rest_}) *each = room.take<T>(wide_);
    for (T** each : {&q_, &factors_}) *each = room.take<T>(rows * wide_);
    const bool gradients = call.grad != nullptr;
    whole_.make(room, columns + PANEL<T>, wide_, gradients);
    piece_.make(room, PIECE + PANEL<T>, wide_, gradients);
    if (!gradients) return;
    for (double** each : {&exact_q_, &d_q_}) *each = room.take<double>(rows * wide_);
    exact_ = room.take<double>(rows * columns);
  }

  // Go to a block of keys of a head, `k` with rows of wide_ values.
  void enter(const T* k, const Span& keys, int64_t h) {
    k_ = k;
    const auto decay = [&](const void* start, int64_t batch, int64_t head, int64_t row, int64_t token) {
      return static_cast<const double*>(start) + b_ * batch + h * head + token * row;
    };
    q_decay_ = decay(call_.q_decay, call_.q_decay_batch, call_.q_decay_head, call_.q_decay_row, 0);
    k_decay_ = decay(call_.k_decay, call_.k_decay_batch, call_.k_decay_head, call_.k_decay_row, keys.begin);
    const auto gradient = [&](double* start, int64_t split, int64_t tokens, int64_t token) {
      const int64_t head = (split * call_.batch + b_) * call_.heads + h;
      return start == nullptr ? nullptr : start + (head * tokens + token) * call_.dim;
    };
    d_q_decay_ = gradient(call_.d_q_decay, split_, call_.queries, 0);
    d_k_decay_ = gradient(call_.d_k_decay, 0, call_.keys, keys.begin);
    scale_keys(0, keys.size(), whole_);
    begun_ = false;
  }

  // The scores of a tile.
  void scores(const Tile& tile, const T* q, int64_t q_row, T* to, int64_t to_row) {
    each_piece(tile, q, q_row, [&](int64_t from, int64_t end, int64_t first, int64_t wide, const Scaled* by) {
      if (by == nullptr) {
        for (int64_t i = from; i < end; ++i)
          for (int64_t j = first; j < wide; ++j)
            to[i * to_row + j] = visible(call_, b_, tile, i, j) ? pair(tile, i, j, q + i * q_row) : T(0);
        return;
      }
      product<T>(
          end - from, wide - first, call_.dim, q_ + from * wide_, wide_, 1, by->panel + (first - by->first) * call_.dim,
          PANEL<T>, call_.dim * PANEL<T>, to + from * to_row + first, to_row, false);
    });
  }

  // Add the gradients of queries and keys, given those of a tile's scores.
  void gradients(
      const Tile& tile, const T* gradient, int64_t row, const T* q, int64_t q_row, T* d_q, int64_t d_q_row, T* d_k) {
    each_piece(tile, q, q_row, [&](int64_t from, int64_t end, int64_t first, int64_t wide, const Scaled* by) {
      const int64_t last = std::min(wide, tile.last);
      if (by == nullptr) {
        for (int64_t i = from; i < end; ++i)
          for (int64_t j = first; j < last; ++j)
            if (visible(call_, b_, tile, i, j))
              pair_gradients(tile, i, j, gradient[i * row + j], q + i * q_row, d_q + i * d_q_row, d_k + j * wide_);
        return;
      }
      const int64_t width = last - first, rows = end - from, offset = (first - by->first) * wide_;
      for (int64_t i = 0; i < rows; ++i)
        for (int64_t j = 0; j < width; ++j) exact_[i * width + j] = double(gradient[(from + i) * row + first + j]);
      std::copy_n(q_ + from * wide_, rows * wide_, exact_q_);
      if (by == &whole_ && !begun_) std::fill(whole_.d, whole_.d + tile.k->size() * wide_, 0.0);
      begun_ |= by == &whole_;
      product<double>(
          width, wide_, rows, exact_, 1, width, exact_q_, wide_, PANEL<double>, by->d + offset, wide_, by == &whole_);
      if (by != &whole_) add_keys(*by, width, d_k);
      product<double>(
          rows, wide_, width, exact_, width, 1, by->exact + offset, wide_, PANEL<double>, d_q_, wide_, false);
      for (int64_t i = 0; i < rows; ++i) {
        const double *d = d_q_ + i * wide_, *x = exact_q_ + i * wide_;
        double* decay = d_q_decay_ == nullptr ? nullptr : d_q_decay_ + (tile.q->begin + from + i) * call_.dim;
        for (int64_t c = 0; decay != nullptr && c < call_.dim; ++c) decay[c] += d[c] * x[c];
        add_product(d_q + (from + i) * d_q_row, d, factors_ + (from + i) * wide_);
      }
    });
  }

  // Leave the block of keys: add the gradients gathered from whole tiles.
  void leave(const Span& keys, T* d_k) {
    if (begun_) add_keys(whole_, keys.size(), d_k);
    begun_ = false;
  }

  const bool on;

 private:
  // Some keys from `first` on, times exp(anchor - P), as rows and as the operand of a product; and gradients of these.
  struct Scaled {
    T *rows, *panel;
    double *exact, *d, *anchor;  // the rows again, and their gradients
    int64_t first;
    void make(Scratch& room, int64_t count, int64_t wide, bool gradients) {
      for (T** each : {&rows, &panel}) *each = room.take<T>(count * wide);
      anchor = room.take<double>(wide);
      for (double** each : {&exact, &d}) *each = gradients ? room.take<double>(count * wide) : nullptr;
    }
  };

  const double* query(const Tile& tile, int64_t i) const { return q_decay_ + (tile.q->begin + i) * call_.q_decay_row; }
  const double* key(int64_t j) const { return k_decay_ + j * call_.k_decay_row; }

  // Divide a tile into pieces whose queries have been scaled for some keys, and small ones that are computed by pairs.
  template <typename Work>
  void each_piece(const Tile& tile, const T* q, int64_t q_row, const Work& work) {
    const int64_t near = scale_queries(tile, tile.rows(), q, q_row, whole_);
    if (near < tile.rows()) work(near, tile.rows(), tile.first, tile.wide, &whole_);
    for (int64_t first = tile.first; near > 0 && first < tile.wide; first += PIECE) {
      const int64_t wide = std::min(first + PIECE, tile.wide), real = std::min(wide, tile.k->size());
      scale_keys(first, real, piece_);
      const int64_t nearest = scale_queries(tile, near, q, q_row, piece_);
      if (nearest < near) work(nearest, near, first, wide, &piece_);
      if (nearest > 0) work(0, nearest, first, wide, nullptr);
    }
  }

  // Scale rows from the last up to `end` on down while their factors are small enough; returns the first of these.
  int64_t scale_queries(const Tile& tile, int64_t end, const T* q, int64_t q_row, const Scaled& by) {
    for (int64_t i = end - 1; i >= 0; --i) {
      T* factor = factors_ + i * wide_;
      if (!(exponentials(query(tile, i), by.anchor, MOST, factor) <= MOST)) return i + 1;
      for (int64_t d = 0; d < wide_; d += LANES<T>)
        (V::loadu(q + i * q_row + d) * V::loadu(factor + d)).store(q_ + i * wide_ + d);
    }
    return 0;
  }

  void scale_keys(int64_t first, int64_t end, Scaled& to) {
    to.first = first;
    std::copy_n(key(first), call_.dim, to.anchor);
    for (int64_t j = first + 1; j < end; ++j)
      for (int64_t d = 0; d < call_.dim; ++d) to.anchor[d] = std::min(to.anchor[d], key(j)[d]);
    const int64_t count = end - first;
    for (int64_t j = 0; j < count; ++j) {
      const T *factor = factor_of(to, first + j), *k = k_ + (first + j) * wide_;
      for (int64_t d = 0; d < wide_; d += LANES<T>)
        (V::loadu(k + d) * V::loadu(factor + d)).store(to.rows + j * wide_ + d);
    }
    std::fill(to.rows + count * wide_, to.rows + round_up(count, PANEL<T>) * wide_, T(0));
    transpose<T>(to.panel, to.rows, wide_, count, call_.dim);
    if (to.exact != nullptr) std::copy_n(to.rows, count * wide_, to.exact);
  }
  // exp(anchor - P) of a key, until the next call.
  const T* factor_of(const Scaled& by, int64_t j) {
    exponentials(by.anchor, key(j), LIMIT, factor_);
    return factor_;
  }
  void add_keys(const Scaled& by, int64_t count, T* d_k) {
    for (int64_t j = 0; j < count; ++j) {
      const double *d = by.d + j * wide_, *x = by.exact + j * wide_;
      double* decay = d_k_decay_ == nullptr ? nullptr : d_k_decay_ + (by.first + j) * call_.dim;
      for (int64_t c = 0; decay != nullptr && c < call_.dim; ++c) decay[c] -= d[c] * x[c];
      add_product(d_k + (by.first + j) * wide_, d, factor_of(by, by.first + j));
    }
  }
  void add_product(T* to, const double* a, const T* b) const {
    for (int64_t d = 0; d < wide_; ++d) to[d] += T(a[d]) * b[d];
  }

  // exp(P_i - P_j), until the next call.
  const T* factor_of_pair(const Tile& tile, int64_t i, int64_t j) {
    exponentials(query(tile, i), key(j), LIMIT, factor_);
    return factor_;
  }
  // exp(a - b), but at most exp(limit); returns the greatest a - b. Differences are double: a float would err by
  // their size times its epsilon, and the two factors of a pair by much more than their product can stand for.
  double exponentials(const double* a, const double* b, double limit, T* to) {
    double most = -std::numeric_limits<double>::infinity();
    for (int64_t d = 0; d < call_.dim; ++d) {
      const double x = std::min(a[d] - b[d], limit);
      most = std::max(most, a[d] - b[d]);
      to[d] = T(x);
      rest_[d] = T(x - double(to[d]));
    }
    std::fill(to + call_.dim, to + wide_, T(0));
    std::fill(rest_ + call_.dim, rest_ + wide_, T(0));
    for (int64_t d = 0; d < wide_; d += LANES<T>) {
      const V e = exp_negative(V::loadu(to + d));
      at::vec::fmadd(e, V::loadu(rest_ + d), e).store(to + d);
    }
    return most;
  }
  T pair(const Tile& tile, int64_t i, int64_t j, const T* q) {
    return weighted_product(q, factor_of_pair(tile, i, j), k_ + j * wide_, wide_);
  }
  void pair_gradients(const Tile& tile, int64_t i, int64_t j, T gradient, const T* q, T* d_q, T* d_k) {
    const T *factor = factor_of_pair(tile, i, j), *k = k_ + j * wide_;
    double *of_q = d_q_decay_ == nullptr ? nullptr : d_q_decay_ + (tile.q->begin + i) * call_.dim,
           *of_k = d_k_decay_ == nullptr ? nullptr : d_k_decay_ + j * call_.dim;
    for (int64_t d = 0; d < call_.dim; ++d) {
      const T scaled = gradient * factor[d];
      const double both = double(scaled * q[d]) * double(k[d]);
      d_q[d] += scaled * k[d];
      d_k[d] += scaled * q[d];
      if (of_q != nullptr) of_q[d] += both;
      if (of_k != nullptr) of_k[d] -= both;
    }
  }

  const Call& call_;
  const int64_t b_, split_, wide_;
  const double *q_decay_ = nullptr, *k_decay_ = nullptr;
  const T* k_ = nullptr;
  T *factor_ = nullptr, *rest_ = nullptr, *q_ = nullptr, *factors_ = nullptr;
  double *exact_q_ = nullptr, *d_q_ = nullptr, *exact_ = nullptr, *d_q_decay_ = nullptr, *d_k_decay_ = nullptr;
  Scaled whole_ = {}, piece_ = {};
  bool begun_ = false;
};

// What takes the place of the product of queries and keys, if anything does.
template <typename T>
class Altered {
 public:
  static size_t bytes(const Call& call, int64_t rows, int64_t columns) {
    return Boosts<T>::bytes(call, rows, columns) + Decays<T>::bytes(call, rows, columns);
  }
  Altered(const Call& call, int64_t b, int64_t split, Scratch& room, int64_t rows, int64_t columns)
      : boosts_(call, b, room, rows, columns),
        decays_(call, b, split, room, rows, columns),
        on(boosts_.on || decays_.on) {}

  void enter(const T* k, const Span& keys, int64_t h) { boosts_.on ? boosts_.enter(k) : decays_.enter(k, keys, h); }
  template <typename... Args>
  void scores(const Args&... args) {
    boosts_.on ? boosts_.scores(args...) : decays_.scores(args...);
  }
  template <typename... Args>
  void gradients(const Args&... args) {
    boosts_.on ? boosts_.gradients(args...) : decays_.gradients(args...);
  }
  void leave(const Span& keys, T* d_k) { boosts_.on ? boosts_.leave(keys, d_k) : decays_.leave(keys, d_k); }

 private:
  Boosts<T> boosts_;
  Decays<T> decays_;

 public:
  const bool on;
};

}  // namespace headway
