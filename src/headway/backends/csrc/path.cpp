// PaTH attention on CPUs, forward and backward: the tokens between a query and a key transform their product.
//
//     out_i = sum_j softmax_j(q_i H_r ... H_{j+1} k_j + per_key_j) v_j        H_t = I - beta_t w_t w_tT
//
// r is the last key that query i sees. A task takes some queries through the blocks of keys from the last to the first:
// u, at first q, is the query as the keys left of a border see it. For a block of 64 keys that lies wholly before r,
//
//     scores = u carriedT      u <- u across
//
// where `carried` are its keys as seen from its right border, and `across` is the product of its H. Where r is inside
// the block, its reflections are applied one by one, in the form of a triangular system:
//
//     g = -((u wT) where t <= r) system      scores = u kT + g inside      u <- u + g w
//
// These come from the block's rows W, K and beta:
//
//     system  = diag(beta) (I + strictly_lower(W WT diag(beta)))^-1        inside = strictly_lower(W KT)
//     across  = H_last ... H_first = I - SolvedT W, Solved = systemT W     carried = K - insideT Solved
//
// Backward takes the queries to the first block, keeping u at every border, and back again, with the gradient of u;
// then gradients of the four become those of W, K and beta. Tasks of a head go through their queries in a fixed order
// and write to their own memory.
#include "path.h"

#include "softmax.h"
#include "tasks.h"

namespace headway::path {

constexpr int64_t BLOCK = 64, QUERIES = 128;

// The keys of a block, as far as masks are concerned.
struct Keys {
  int64_t low, high;          // positions; low > high if all are padding
  int64_t doc_low, doc_high;  // likewise documents
  bool simple;                // no padding, one document
};

// Who sees whom in one sequence.
class Sight {
 public:
  Sight(const Call& call, int64_t b)
      : call_(call),
        q_pos_(call.q_pos + b * call.queries),
        k_pos_(call.k_pos + b * call.blocks * BLOCK),
        q_docs_(call.q_docs == nullptr ? nullptr : call.q_docs + b * call.queries),
        k_docs_(call.k_docs == nullptr ? nullptr : call.k_docs + b * call.blocks * BLOCK),
        mask_(call, b, 0),
        first(call.queries, call.blocks * BLOCK),
        last(call.queries, -1) {
    for (int64_t begin = 0; begin < call.blocks * BLOCK; begin += BLOCK) {
      constexpr int64_t most = std::numeric_limits<int64_t>::max(), least = std::numeric_limits<int64_t>::min();
      Keys keys{most, -1, most, least, true};
      for (int64_t j = begin; j < begin + BLOCK; ++j) {
        keys.simple &= k_pos_[j] >= 0;
        if (k_pos_[j] < 0) continue;
        const int64_t doc = k_docs_ == nullptr ? 0 : k_docs_[j];
        keys.low = std::min(keys.low, k_pos_[j]);
        keys.high = std::max(keys.high, k_pos_[j]);
        keys.doc_low = std::min(keys.doc_low, doc);
        keys.doc_high = std::max(keys.doc_high, doc);
      }
      keys.simple &= keys.doc_low == keys.doc_high;
      blocks_.push_back(keys);
    }
    for (int64_t i = 0; i < call.queries; ++i) {
      for (int64_t block = 0; block < call.blocks && last[i] < 0; ++block) {
        for (int64_t j = block * BLOCK; may(i, block) && j < (block + 1) * BLOCK && last[i] < 0; ++j)
          if (visible(i, j)) first[i] = last[i] = j;
      }
      for (int64_t block = call.blocks - 1; last[i] >= 0 && block * BLOCK + BLOCK > last[i]; --block) {
        if (!may(i, block)) continue;
        int64_t j = (block + 1) * BLOCK - 1;
        while (j > last[i] && !visible(i, j)) --j;
        if (visible(i, j)) {
          last[i] = j;
          break;
        }
      }
    }
  }

  // Narrow the rows [from, end) to those from the first to the last that have business with a block.
  bool narrow(int64_t block, int64_t& from, int64_t& end) const {
    const auto idle = [&](int64_t i) { return last[i] < block * BLOCK || first[i] >= (block + 1) * BLOCK; };
    while (from < end && idle(from)) ++from;
    while (from < end && idle(end - 1)) --end;
    return from < end;
  }
  // Whether all tokens of a block transform all these rows.
  bool before(int64_t block, int64_t from, int64_t end) const {
    for (int64_t i = from; i < end; ++i)
      if (last[i] < (block + 1) * BLOCK - 1) return false;
    return true;
  }

  // What is added to the scores of a row; `row` has room for them.
  template <typename T>
  Added<T> added(int64_t i, int64_t block, const T* per_key, T* row) const {
    const T* each = per_key == nullptr ? nullptr : per_key + block * BLOCK;
    if (clear(i, block)) return {each, T(0)};
    const int64_t key = block * BLOCK;
    const uint8_t* shown = mask_ ? mask_.row(i, key, key + BLOCK) : nullptr;
    for (int64_t j = 0; j < BLOCK; ++j) {
      const bool seen = within(i, key + j) && (shown == nullptr || shown[j]);
      row[j] = !seen ? -std::numeric_limits<T>::infinity() : each == nullptr ? T(0) : each[j];
    }
    return {row, T(0)};
  }

 private:
  bool may(int64_t i, int64_t block) const {
    const Keys& keys = blocks_[block];
    return q_pos_[i] >= 0 && keys.low <= keys.high && keys.low - q_pos_[i] <= call_.future &&
           keys.high - q_pos_[i] >= -call_.past &&
           (q_docs_ == nullptr || (q_docs_[i] >= keys.doc_low && q_docs_[i] <= keys.doc_high)) &&
           shown(i, block) != Mask::HIDDEN;
  }
  bool clear(int64_t i, int64_t block) const {
    const Keys& keys = blocks_[block];
    return keys.simple && q_pos_[i] >= 0 && keys.high - q_pos_[i] <= call_.future &&
           keys.low - q_pos_[i] >= -call_.past && (q_docs_ == nullptr || q_docs_[i] == keys.doc_low) &&
           shown(i, block) == Mask::ALL;
  }
  Mask::State shown(int64_t i, int64_t block) const { return mask_.of(i, i + 1, block * BLOCK, (block + 1) * BLOCK); }
  bool visible(int64_t i, int64_t j) const { return within(i, j) && mask_.visible(i, j); }
  bool within(int64_t i, int64_t j) const {
    const int64_t apart = k_pos_[j] - q_pos_[i];
    return q_pos_[i] >= 0 && k_pos_[j] >= 0 && apart <= call_.future && apart >= -call_.past &&
           (q_docs_ == nullptr || q_docs_[i] == k_docs_[j]);
  }

  const Call& call_;
  const int64_t *q_pos_, *k_pos_, *q_docs_, *k_docs_;
  const Mask mask_;
  std::vector<Keys> blocks_;

 public:
  std::vector<int64_t> first, last;  // the keys that each query sees first and last; beyond the end and -1 if none
};

std::vector<Sight> sights(const Call& call) {
  std::vector<Sight> result;
  for (int64_t b = 0; b < call.batch; ++b) result.emplace_back(call, b);
  return result;
}

// to (columns, rows) = from (rows, columns) transposed; both multiples of the lanes.
template <typename T>
void flip(T* to, const T* from, int64_t rows, int64_t columns) {
  constexpr int64_t lanes = LANES<T>;
  for (int64_t r = 0; r < rows; r += lanes)
    for (int64_t c = 0; c < columns; c += lanes)
      at::vec::transpose_mxn<T, lanes, lanes>(from + r * columns + c, columns, to + c * rows + r, rows);
}

// C (M, N) = or += A (M, K) B (K, N), all with contiguous rows; A transposed if `across`, from (K, M).
template <typename T>
void multiply(int64_t M, int64_t N, int64_t K, const T* A, const T* B, T* C, bool add, bool transposed = false) {
  product<T>(M, N, K, A, transposed ? 1 : K, transposed ? M : 1, B, N, PANEL<T>, C, N, add);
}

// What is computed of all blocks, (B, H_w, blocks, ...), or gradients, several copies of them.
template <typename T>
struct Blocks {
  std::vector<T> k, w, inside, system, inverse, carried, across;

  Blocks(const Call& call, int64_t copies, bool gradients) {
    const int64_t tokens = copies * call.batch * call.w_heads * call.blocks * BLOCK;
    inside.resize(tokens * BLOCK);
    system.resize(tokens * BLOCK);
    if (call.whole) carried.resize(tokens * call.dim);
    if (call.whole) across.resize(tokens / BLOCK * call.dim * call.dim);
    if (!gradients) inverse.resize(tokens * BLOCK);
    if (gradients) k.resize(tokens * call.dim);
    if (gradients) w.resize(tokens * call.dim);
  }
};

// The data of one block, or of one head, which begins with its first block; or their gradients.
template <typename T>
struct Head {
  T *k, *w, *inside, *system, *carried, *across, *v, *per_key;

  static Head of(const Call& call, Blocks<T>& blocks, int64_t b, int64_t h, int64_t split, bool gradients) {
    const int64_t tokens = call.blocks * BLOCK, h_w = h / (call.heads / call.w_heads);
    const int64_t by_v = (split * call.batch + b) * call.kv_heads + h / (call.heads / call.kv_heads);
    const auto at = [](const void* start, int64_t offset) {
      return start == nullptr ? nullptr : static_cast<T*>(const_cast<void*>(start)) + offset;
    };
    Head head = of_blocks(call, blocks, (split * call.batch + b) * call.w_heads + h_w, gradients);
    head.v = at(gradients ? call.d_v : call.v, by_v * tokens * call.dim_v);
    if (!gradients) head.per_key = at(call.per_key, (b * call.heads + h) * tokens);
    return head;
  }
  static Head of_blocks(const Call& call, Blocks<T>& blocks, int64_t by_w, bool gradients) {
    T* k = gradients ? blocks.k.data() : static_cast<T*>(const_cast<void*>(call.k));
    T* w = gradients ? blocks.w.data() : static_cast<T*>(const_cast<void*>(call.w));
    const Head first{
        k,       w,      blocks.inside.data(), blocks.system.data(), blocks.carried.data(), blocks.across.data(),
        nullptr, nullptr};
    return first.block(call, by_w * call.blocks);
  }
  Head block(const Call& call, int64_t block) const {
    const int64_t tokens = block * BLOCK;
    return {
        k + tokens * call.dim,
        w + tokens * call.dim,
        inside + tokens * BLOCK,
        system + tokens * BLOCK,
        call.whole ? carried + tokens * call.dim : nullptr,
        call.whole ? across + block * call.dim * call.dim : nullptr,
        v == nullptr ? nullptr : v + tokens * call.dim_v,
        per_key == nullptr ? nullptr : per_key + tokens};
  }
};

// Zero what is not strictly below the diagonal.
template <typename T>
void lower(T* x) {
  for (int64_t t = 0; t < BLOCK; ++t) std::fill(x + t * BLOCK + t, x + (t + 1) * BLOCK, T(0));
}

// The products of a block's rows w: overlap = w wT.
template <typename T>
void overlaps(const T* w, int64_t dim, T* flipped, T* overlap) {
  flip(flipped, w, BLOCK, dim);
  multiply(BLOCK, BLOCK, dim, w, flipped, overlap, false);
}

// Compute what a block does to u and to scores.
template <typename T>
void prepare(const Call& call, Blocks<T>& blocks, int64_t index, Scratch& scratch) {
  const int64_t dim = call.dim, most = std::max(BLOCK, dim);
  const Head<T> block = Head<T>::of_blocks(call, blocks, 0, false).block(call, index);
  const T* beta = static_cast<const T*>(call.beta) + index * BLOCK;
  T *inverse = blocks.inverse.data() + index * BLOCK * BLOCK, *flipped = scratch.take<T>(most * most),
    *overlap = scratch.take<T>(BLOCK * BLOCK), *solved = scratch.take<T>(BLOCK * dim);
  overlaps(block.w, dim, flipped, overlap);
  for (int64_t t = 0; t < BLOCK; ++t) {
    T* row = inverse + t * BLOCK;
    row[t] = T(1);
    for (int64_t s = 0; s < t; ++s) {
      const T* above = inverse + s * BLOCK;
      const T factor = overlap[t * BLOCK + s] * beta[s];
      for (int64_t j = 0; j <= s; ++j) row[j] -= factor * above[j];
    }
    for (int64_t j = 0; j < BLOCK; ++j) block.system[t * BLOCK + j] = beta[t] * row[j];
  }
  flip(flipped, block.k, BLOCK, dim);
  multiply(BLOCK, BLOCK, dim, block.w, flipped, block.inside, false);
  lower(block.inside);
  if (!call.whole) return;
  multiply(BLOCK, dim, BLOCK, block.system, block.w, solved, false, true);
  multiply(BLOCK, dim, BLOCK, block.inside, solved, block.carried, false, true);
  for (int64_t i = 0; i < BLOCK * dim; ++i) block.carried[i] = block.k[i] - block.carried[i];
  multiply(dim, dim, BLOCK, solved, block.w, block.across, false, true);
  for (int64_t i = 0; i < dim * dim; ++i) block.across[i] = T(i % (dim + 1) == 0) - block.across[i];
}

// From the gradients of what a block does, those of its k, w and beta.
template <typename T>
void differentiate_block(const Call& call, Blocks<T>& blocks, Blocks<T>& gradients, int64_t index, Scratch& scratch) {
  const int64_t dim = call.dim, most = std::max(BLOCK, dim), all = call.batch * call.w_heads * call.blocks;
  const Head<T> block = Head<T>::of_blocks(call, blocks, 0, false).block(call, index);
  const Head<T> sums = Head<T>::of_blocks(call, gradients, 0, true), d = sums.block(call, index);
  const auto add = [](T* to, const T* from, int64_t count, T factor) {
    for (int64_t i = 0; i < count; ++i) to[i] += factor * from[i];
  };
  for (int64_t split = 1; split < call.splits; ++split) {
    const Head<T> other = sums.block(call, split * all + index);
    add(d.k, other.k, BLOCK * dim, T(1));
    add(d.w, other.w, BLOCK * dim, T(1));
    add(d.inside, other.inside, BLOCK * BLOCK, T(1));
    add(d.system, other.system, BLOCK * BLOCK, T(1));
    if (call.whole) add(d.carried, other.carried, BLOCK * dim, T(1));
    if (call.whole) add(d.across, other.across, dim * dim, T(1));
  }
  const T *beta = static_cast<const T*>(call.beta) + index * BLOCK,
          *inverse = blocks.inverse.data() + index * BLOCK * BLOCK;
  T* d_beta = static_cast<T*>(call.d_beta) + index * BLOCK;
  T *flipped = scratch.take<T>(most * most), *overlap = scratch.take<T>(BLOCK * BLOCK),
    *square = scratch.take<T>(BLOCK * BLOCK), *solved = scratch.take<T>(BLOCK * dim),
    *d_solved = scratch.take<T>(BLOCK * dim), *room = scratch.take<T>(BLOCK * dim);
  if (call.whole) {
    multiply(BLOCK, dim, BLOCK, block.system, block.w, solved, false, true);
    multiply(BLOCK, dim, BLOCK, block.inside, d.carried, d_solved, false);
    flip(flipped, d.across, dim, dim);
    multiply(BLOCK, dim, dim, block.w, flipped, d_solved, true);
    for (int64_t i = 0; i < BLOCK * dim; ++i) d_solved[i] = -d_solved[i];
    flip(flipped, d.carried, BLOCK, dim);
    multiply(BLOCK, BLOCK, dim, solved, flipped, square, false);
    add(d.inside, square, BLOCK * BLOCK, T(-1));
    multiply(BLOCK, dim, dim, solved, d.across, room, false);
    add(d.w, room, BLOCK * dim, T(-1));
    flip(flipped, d_solved, BLOCK, dim);
    multiply(BLOCK, BLOCK, dim, block.w, flipped, d.system, true);
    multiply(BLOCK, dim, BLOCK, block.system, d_solved, d.w, true);
    add(d.k, d.carried, BLOCK * dim, T(1));
  }
  lower(d.inside);
  for (int64_t t = 0; t < BLOCK; ++t) {
    T sum(0);
    for (int64_t s = 0; s <= t; ++s) sum += d.system[t * BLOCK + s] * inverse[t * BLOCK + s];
    d_beta[t] = sum;
    for (int64_t s = 0; s < BLOCK; ++s) d.system[t * BLOCK + s] *= beta[t];
  }
  // of the inverse, then of what was inverted
  multiply(BLOCK, BLOCK, BLOCK, inverse, d.system, square, false, true);
  flip(flipped, inverse, BLOCK, BLOCK);
  multiply(BLOCK, BLOCK, BLOCK, square, flipped, d.system, false);
  lower(d.system);
  overlaps(block.w, dim, flipped, overlap);
  for (int64_t t = 0; t < BLOCK; ++t)
    for (int64_t s = 0; s < t; ++s) {
      d_beta[s] -= d.system[t * BLOCK + s] * overlap[t * BLOCK + s];
      d.system[t * BLOCK + s] *= -beta[s];
    }
  multiply(BLOCK, dim, BLOCK, d.system, block.w, d.w, true);
  multiply(BLOCK, dim, BLOCK, d.system, block.w, d.w, true, true);
  multiply(BLOCK, dim, BLOCK, d.inside, block.k, d.w, true);
  multiply(BLOCK, dim, BLOCK, d.inside, block.w, d.k, true, true);
  std::copy_n(d.k, BLOCK * dim, static_cast<T*>(call.d_k) + index * BLOCK * dim);
  std::copy_n(d.w, BLOCK * dim, static_cast<T*>(call.d_w) + index * BLOCK * dim);
}

// Run `work(index, room)` for every block of all heads.
template <typename T, typename Work>
void each_block(const Call& call, const Work& work) {
  const int64_t dim = call.dim, most = std::max(BLOCK, dim);
  const size_t bytes = sizeof(T) * (most * most + 2 * BLOCK * BLOCK + 3 * BLOCK * dim) + 64 * 8;
  run(call.batch * call.w_heads * call.blocks, bytes, work);
}

// Takes rows of u across a block, and their gradients back.
template <typename T>
class Crossing {
 public:
  static int64_t room(int64_t dim) {
    const int64_t most = std::max(BLOCK, dim);
    return most * most + 4 * QUERIES * BLOCK;
  }

  Crossing(const Call& call, Scratch& scratch) : dim_(call.dim) {
    const int64_t most = std::max(BLOCK, dim_);
    flipped_ = scratch.take<T>(most * most);
    for (T** each : {&raw_, &share_, &d_share_, &d_raw_}) *each = scratch.take<T>(QUERIES * BLOCK);
  }

  // Go to a block with some rows of u. `last`: the last key of each row, counted from the block's first; null if all
  // lie beyond its end.
  void enter(const Head<T>& block, int64_t rows, const int64_t* last, const T* u) {
    block_ = block;
    rows_ = rows;
    last_ = last;
    u_ = u;
    if (last == nullptr) return;
    flip(flipped_, block.w, BLOCK, dim_);
    multiply(rows, BLOCK, dim_, u, flipped_, raw_, false);
    negate_until_last(raw_);
    multiply(rows, BLOCK, BLOCK, raw_, block.system, share_, false);
  }

  // The scores, (rows, 64).
  void scores(T* to) {
    flip(flipped_, last_ == nullptr ? block_.carried : block_.k, BLOCK, dim_);
    multiply(rows_, BLOCK, dim_, u_, flipped_, to, false);
    if (last_ != nullptr) multiply(rows_, BLOCK, BLOCK, share_, block_.inside, to, true);
  }

  // u beyond the block.
  void move(T* next) {
    if (last_ == nullptr) {
      multiply(rows_, dim_, dim_, u_, block_.across, next, false);
    } else {
      std::copy_n(u_, rows_ * dim_, next);
      multiply(rows_, dim_, BLOCK, share_, block_.w, next, true);
    }
  }

  // Gradients of the block's data, from those of the scores and of u beyond the block; and of u before it, in its
  // place.
  void differentiate(const Head<T>& to, const T* d_scores, T* d_u, T* room) {
    if (last_ == nullptr) {
      multiply(BLOCK, dim_, rows_, d_scores, u_, to.carried, true, true);
      multiply(dim_, dim_, rows_, u_, d_u, to.across, true, true);
      flip(flipped_, block_.across, dim_, dim_);
      multiply(rows_, dim_, dim_, d_u, flipped_, room, false);
      multiply(rows_, dim_, BLOCK, d_scores, block_.carried, room, true);
      std::copy_n(room, rows_ * dim_, d_u);
      return;
    }
    flip(flipped_, block_.inside, BLOCK, BLOCK);
    multiply(rows_, BLOCK, BLOCK, d_scores, flipped_, d_share_, false);
    flip(flipped_, block_.w, BLOCK, dim_);
    multiply(rows_, BLOCK, dim_, d_u, flipped_, d_share_, true);
    flip(flipped_, block_.system, BLOCK, BLOCK);
    multiply(rows_, BLOCK, BLOCK, d_share_, flipped_, d_raw_, false);
    negate_until_last(d_raw_);
    multiply(BLOCK, dim_, rows_, d_scores, u_, to.k, true, true);
    multiply(BLOCK, BLOCK, rows_, share_, d_scores, to.inside, true, true);
    multiply(BLOCK, BLOCK, rows_, raw_, d_share_, to.system, true, true);
    multiply(BLOCK, dim_, rows_, share_, d_u, to.w, true, true);
    multiply(BLOCK, dim_, rows_, d_raw_, u_, to.w, true, true);
    multiply(rows_, dim_, BLOCK, d_scores, block_.k, d_u, true);
    multiply(rows_, dim_, BLOCK, d_raw_, block_.w, d_u, true);
  }

 private:
  void negate_until_last(T* x) const {
    for (int64_t i = 0; i < rows_; ++i, x += BLOCK) {
      const int64_t kept = std::min(std::max<int64_t>(last_[i] + 1, 0), BLOCK);
      for (int64_t j = 0; j < kept; ++j) x[j] = -x[j];
      std::fill(x + kept, x + BLOCK, T(0));
    }
  }

  const int64_t dim_;
  Head<T> block_{};
  int64_t rows_ = 0;
  const int64_t* last_ = nullptr;
  const T* u_ = nullptr;
  T *flipped_, *raw_, *share_, *d_share_, *d_raw_;
};

inline headway::Call dropped(const Call& call) {
  headway::Call plain{};
  plain.heads = call.heads;
  plain.dropout = call.dropout;
  plain.seed = call.seed;
  return plain;
}

// The rows [from, end) of a task that have business with a block, and their last keys as Crossing wants them.
struct Part {
  int64_t from, end;
  bool whole;
  int64_t last[QUERIES];

  Part(const Call& call, const Sight& sight, int64_t block, int64_t begin, int64_t stop) : from(begin), end(stop) {
    any_ = sight.narrow(block, from, end);
    whole = call.whole && sight.before(block, from, end);
    for (int64_t i = from; i < end; ++i) last[i - from] = sight.last[i] - block * BLOCK;
  }
  explicit operator bool() const { return any_; }
  int64_t rows() const { return end - from; }
  const int64_t* limits() const { return whole ? nullptr : last; }

 private:
  bool any_;
};

template <typename T>
void forward(const Call& call) {
  const std::vector<Sight> all = sights(call);
  Blocks<T> blocks(call, 1, false);
  each_block<T>(call, [&](int64_t index, Scratch& scratch) { prepare(call, blocks, index, scratch); });
  const int64_t dim = call.dim, dim_v = call.dim_v, per_head = (call.queries + QUERIES - 1) / QUERIES;
  const size_t bytes = sizeof(T) * (Crossing<T>::room(dim) + QUERIES * (2 * dim + dim_v + BLOCK + 2) + BLOCK) + 64 * 16;
  run(call.batch * call.heads * per_head, bytes, [&](int64_t task, Scratch& scratch) {
    const int64_t bh = task / per_head, b = bh / call.heads, h = bh % call.heads;
    const int64_t begin = (per_head - 1 - task % per_head) * QUERIES, stop = std::min(call.queries, begin + QUERIES);
    const Sight& sight = all[b];
    const Head<T> head = Head<T>::of(call, blocks, b, h, 0, false);
    const Dropout dropout(dropped(call), b, h);
    Crossing<T> crossing(call, scratch);
    T *u = scratch.take<T>(QUERIES * dim), *next = scratch.take<T>(QUERIES * dim);
    T *scores = scratch.take<T>(QUERIES * BLOCK), *row_room = scratch.take<T>(BLOCK);
    T *most = scratch.take<T>(QUERIES), *total = scratch.take<T>(QUERIES);
    T* out = static_cast<T*>(call.out) + (bh * call.queries + begin) * dim_v;
    std::copy_n(static_cast<const T*>(call.q) + (bh * call.queries + begin) * dim, (stop - begin) * dim, u);
    std::fill_n(out, (stop - begin) * dim_v, T(0));
    std::fill(most, most + QUERIES, -std::numeric_limits<T>::infinity());
    std::fill(total, total + QUERIES, T(0));
    for (int64_t block = call.blocks - 1; block >= 0; --block) {
      const Part part(call, sight, block, begin, stop);
      if (!part) continue;
      const int64_t skip = part.from - begin;
      const Head<T> here = head.block(call, block);
      crossing.enter(here, part.rows(), part.limits(), u + skip * dim);
      crossing.scores(scores);
      if (block > 0) crossing.move(next);
      for (int64_t i = part.from; i < part.end; ++i) {
        T *row = scores + (i - part.from) * BLOCK, shrink;
        soften<T>(
            row, 0, BLOCK, sight.added<T>(i, block, head.per_key, row_room), most[i - begin], total[i - begin], shrink);
        if (dropout.on) dropout.apply(row, i, block * BLOCK, 0, BLOCK);
        for (int64_t d = 0; shrink != T(1) && d < dim_v; ++d) out[(i - begin) * dim_v + d] *= shrink;
      }
      multiply(part.rows(), dim_v, BLOCK, scores, here.v, out + skip * dim_v, true);
      std::copy_n(next, part.rows() * dim, u + skip * dim);
    }
    T* kept = static_cast<T*>(call.sums) + (bh * call.queries + begin) * 2;
    for (int64_t i = 0; i < stop - begin; ++i) {
      const bool seen = total[i] > T(0) || std::isnan(total[i]);
      const T inverse = seen ? T(1) / total[i] : T(0);
      kept[2 * i] = seen ? most[i] : T(0);
      kept[2 * i + 1] = inverse;
      for (int64_t d = 0; d < dim_v; ++d) out[i * dim_v + d] *= inverse;
    }
  });
}

template <typename T>
void backward(const Call& call) {
  const std::vector<Sight> all = sights(call);
  Blocks<T> blocks(call, 1, false), d_blocks(call, call.splits, true);
  each_block<T>(call, [&](int64_t index, Scratch& scratch) { prepare(call, blocks, index, scratch); });
  const int64_t dim = call.dim, dim_v = call.dim_v, per_head = (call.queries + QUERIES - 1) / QUERIES;
  const int64_t group = call.heads / call.kv_heads;
  const size_t bytes = sizeof(T) * (Crossing<T>::room(dim) + (call.blocks + 1) * QUERIES * dim + QUERIES * 2 * dim +
                                    BLOCK * dim_v + QUERIES * (2 * BLOCK + 3) + BLOCK) +
                       64 * 20;
  run(call.batch * call.kv_heads * call.splits, bytes, [&](int64_t task, Scratch& scratch) {
    const int64_t split = task % call.splits, h_kv = task / call.splits % call.kv_heads,
                  b = task / call.splits / call.kv_heads;
    const Sight& sight = all[b];
    Crossing<T> crossing(call, scratch);
    T* borders = scratch.take<T>((call.blocks + 1) * QUERIES * dim);  // u at the right border of every block
    T *d_u = scratch.take<T>(QUERIES * dim), *room = scratch.take<T>(QUERIES * dim);
    T *weights = scratch.take<T>(QUERIES * BLOCK), *gradients = scratch.take<T>(QUERIES * BLOCK),
      *v_flipped = scratch.take<T>(BLOCK * dim_v), *row_room = scratch.take<T>(BLOCK);
    Query<T>* rows = scratch.take<Query<T>>(QUERIES);
    const auto of_queries = [&](int64_t h, int64_t some) {
      const int64_t first = (b * call.heads + h) * call.queries, begin = some * QUERIES,
                    stop = std::min(call.queries, begin + QUERIES);
      const Head<T> head = Head<T>::of(call, blocks, b, h, 0, false),
                    d_head = Head<T>::of(call, d_blocks, b, h, split, true);
      double* d_per_key = call.d_per_key == nullptr
                              ? nullptr
                              : call.d_per_key + ((split * call.batch + b) * call.heads + h) * call.blocks * BLOCK;
      const Dropout dropout(dropped(call), b, h);
      const T *out = static_cast<const T*>(call.out) + (first + begin) * dim_v,
              *grad = static_cast<const T*>(call.grad) + (first + begin) * dim_v,
              *sums = static_cast<const T*>(call.sums) + (first + begin) * 2;
      for (int64_t i = 0; i < stop - begin; ++i) {
        double mean = 0;
        for (int64_t d = 0; d < dim_v; ++d) mean += double(grad[i * dim_v + d]) * double(out[i * dim_v + d]);
        rows[i] = {sums[2 * i], sums[2 * i + 1], T(mean)};
      }
      const auto at_border = [&](int64_t block) { return borders + block * QUERIES * dim; };
      std::copy_n(static_cast<const T*>(call.q) + (first + begin) * dim, (stop - begin) * dim, at_border(call.blocks));
      for (int64_t block = call.blocks - 1; block >= 0; --block) {
        T *u = at_border(block + 1), *next = at_border(block);
        std::copy_n(u, (stop - begin) * dim, next);
        const Part part(call, sight, block, begin, stop);
        if (!part || block == 0) continue;
        const int64_t skip = (part.from - begin) * dim;
        crossing.enter(head.block(call, block), part.rows(), part.limits(), u + skip);
        crossing.move(next + skip);
      }
      std::fill_n(d_u, QUERIES * dim, T(0));
      for (int64_t block = 0; block < call.blocks; ++block) {
        const Part part(call, sight, block, begin, stop);
        if (!part) continue;
        const int64_t skip = part.from - begin;
        const Head<T> here = head.block(call, block), d_here = d_head.block(call, block);
        const T *u = at_border(block + 1) + skip * dim, *grad_here = grad + skip * dim_v;
        crossing.enter(here, part.rows(), part.limits(), u);
        crossing.scores(weights);
        flip(v_flipped, here.v, BLOCK, dim_v);
        multiply(part.rows(), BLOCK, dim_v, grad_here, v_flipped, gradients, false);
        for (int64_t i = part.from; i < part.end; ++i) {
          T *weight = weights + (i - part.from) * BLOCK, *gradient = gradients + (i - part.from) * BLOCK;
          if (dropout.on) dropout.apply(gradient, i, block * BLOCK, 0, BLOCK);
          differentiate<T>(
              weight, gradient, 0, BLOCK, sight.added<T>(i, block, head.per_key, row_room), rows[i - begin],
              sight.first[i] / BLOCK == sight.last[i] / BLOCK);
          if (dropout.on) dropout.apply(weight, i, block * BLOCK, 0, BLOCK);
          for (int64_t j = 0; d_per_key != nullptr && j < BLOCK; ++j) d_per_key[block * BLOCK + j] += gradient[j];
        }
        multiply(BLOCK, dim_v, part.rows(), weights, grad_here, d_here.v, true, true);
        crossing.differentiate(d_here, gradients, d_u + skip * dim, room);
      }
      std::copy_n(d_u, (stop - begin) * dim, static_cast<T*>(call.d_q) + (first + begin) * dim);
    };
    for (int64_t h = h_kv * group; h < (h_kv + 1) * group; ++h)
      for (int64_t some = split; some < per_head; some += call.splits) of_queries(h, some);
  });
  each_block<T>(
      call, [&](int64_t index, Scratch& scratch) { differentiate_block(call, blocks, d_blocks, index, scratch); });
}

}  // namespace headway::path

extern "C" int path_forward(const headway::path::Call* call, int kind, char* message) {
  return headway::by_kind(kind, message, [&]<typename T, typename In>() { headway::path::forward<T>(*call); });
}

extern "C" int path_backward(const headway::path::Call* call, int kind, char* message) {
  return headway::by_kind(kind, message, [&]<typename T, typename In>() { headway::path::backward<T>(*call); });
}

// Lets Python check that both sides have the same layout.
extern "C" int64_t path_size() { return sizeof(headway::path::Call); }
