// Masks that are more than a reach and documents: which pairs of tokens they show.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdint>
#include <vector>

namespace headway {

// A mask in postfix order, see masks/steps.py: each leaf compares, or looks up in a table of bytes, a number of the
// query and one of the key.
class Mask {
 public:
  enum State : uint8_t { HIDDEN, SOME, ALL };  // what is shown of a tile

  template <typename AnyCall>
  Mask(const AnyCall& call, int64_t b, int64_t h)
      : steps_(reinterpret_cast<const Step*>(call.mask)),
        count_(call.mask == nullptr ? 0 : call.mask_steps),
        q_(call.mask_q + b * call.mask_q_batch),
        k_(call.mask_k + b * call.mask_k_batch),
        q_leaf_(call.mask_q_leaf),
        k_leaf_(call.mask_k_leaf),
        table_(static_cast<const uint8_t*>(call.mask_table) + b * call.mask_table_batch + h * call.mask_table_head),
        row_(call.mask_table_row) {}

  explicit operator bool() const { return count_ > 0; }

  // What is shown of queries [i, i_end) × keys [j, j_end); SOME if in doubt.
  State of(int64_t i, int64_t i_end, int64_t j, int64_t j_end) const {
    if (count_ == 0) return ALL;
    thread_local std::vector<State> states;
    states.clear();
    run([&](int64_t leaf, const Step& step) { states.push_back(of_leaf(leaf, step, i, i_end, j, j_end)); },
        [&](bool both) {
          const State last = states.back();
          states.pop_back();
          states.back() = both ? std::min(states.back(), last) : std::max(states.back(), last);
        });
    return states[0];
  }

  // Which of keys [j, j_end) query i sees, a byte of 0 or 1 each; kept until the thread's next call.
  const uint8_t* row(int64_t i, int64_t j, int64_t j_end) const {
    const int64_t width = j_end - j;
    thread_local std::vector<uint8_t> rows;
    rows.resize(std::max<size_t>(rows.size(), count_ * width));
    uint8_t* top = rows.data();
    run(
        [&](int64_t leaf, const Step& step) {
          const int64_t own = q_[leaf * q_leaf_ + i], *keys = k_ + leaf * k_leaf_ + j;
          if (step.kind == COMPARE) {
            const uint64_t least = uint64_t(own) + uint64_t(step.low), most = uint64_t(step.high - step.low);
            for (int64_t n = 0; n < width; ++n) top[n] = uint64_t(keys[n]) - least <= most;
          } else {
            const uint8_t* from = table_ + own * row_;
            for (int64_t n = 0; n < width; ++n) top[n] = from[keys[n]];
          }
          top += width;
        },
        [&](bool both) {
          top -= width;
          uint8_t *to = top - width, *from = top;
          for (int64_t n = 0; n < width; ++n) to[n] = both ? to[n] & from[n] : to[n] | from[n];
        });
    return rows.data();
  }

  bool visible(int64_t i, int64_t j) const { return count_ == 0 || *row(i, j, j + 1) != 0; }

 private:
  enum Kind : int64_t { COMPARE, LOOK_UP, AND, OR };
  struct Step {
    int64_t kind, low, high;
  };

  template <typename Leaf, typename Join>
  void run(const Leaf& leaf, const Join& join) const {
    int64_t leaves = 0;
    for (int64_t n = 0; n < count_; ++n) {
      const Step& step = steps_[n];
      if (step.kind == COMPARE || step.kind == LOOK_UP)
        leaf(leaves++, step);
      else
        join(step.kind == AND);
    }
  }

  State of_leaf(int64_t leaf, const Step& step, int64_t i, int64_t i_end, int64_t j, int64_t j_end) const {
    const int64_t *q = q_ + leaf * q_leaf_, *k = k_ + leaf * k_leaf_;
    const auto [q_low, q_high] = std::minmax_element(q + i, q + i_end);
    const auto [k_low, k_high] = std::minmax_element(k + j, k + j_end);
    if (step.kind == COMPARE) {
      __extension__ using Wide = __int128;  // ids of documents may be any numbers
      const Wide low = Wide(*k_low) - *q_high, high = Wide(*k_high) - *q_low;
      if (high < step.low || low > step.high) return HIDDEN;
      return low >= step.low && high <= step.high ? ALL : SOME;
    }
    bool any = false, all = true;
    for (int64_t row = *q_low; row <= *q_high && (all || !any); ++row)
      for (int64_t column = *k_low; column <= *k_high; ++column) {
        const bool shown = table_[row * row_ + column] != 0;
        any |= shown;
        all &= shown;
      }
    return !any ? HIDDEN : all ? ALL : SOME;
  }

  const Step* steps_;
  int64_t count_;
  const int64_t *q_, *k_;
  int64_t q_leaf_, k_leaf_;
  const uint8_t* table_;
  int64_t row_;
};

// What a mask shows of every tile of a call, by sequence and head.
class Shown {
 public:
  // q, k: the spans of each sequence.
  template <typename AnyCall, typename Spans>
  void measure(const AnyCall& call, const Spans& q, const Spans& k) {
    if (call.mask == nullptr || q.empty()) return;
    heads_ = call.mask_table == nullptr || call.mask_table_head == 0 ? 1 : call.heads;
    rows_ = q[0].size();
    columns_ = k[0].size();
    states_.resize(call.batch * heads_ * rows_ * columns_);
    at::parallel_for(0, call.batch * heads_ * rows_, 1, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) {
        const int64_t b = n / rows_ / heads_;
        const Mask mask(call, b, n / rows_ % heads_);
        const auto& queries = q[b][n % rows_];
        for (int64_t ik = 0; ik < columns_; ++ik)
          states_[n * columns_ + ik] = mask.of(queries.begin, queries.end, k[b][ik].begin, k[b][ik].end);
      }
    });
  }
  Mask::State of(int64_t b, int64_t h, int64_t iq, int64_t ik) const {
    if (states_.empty()) return Mask::ALL;
    return states_[((b * heads_ + (heads_ == 1 ? 0 : h)) * rows_ + iq) * columns_ + ik];
  }

 private:
  int64_t heads_ = 1, rows_ = 0, columns_ = 0;
  std::vector<Mask::State> states_;
};

}  // namespace headway
