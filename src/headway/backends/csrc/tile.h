// Biases and masks of a tile of scores, by the positions of its queries and keys.
#pragma once

#include "call.h"
#include "dense.h"
#include "mask.h"
#include "tables.h"

#include <vector>

namespace headway {

// The dtypes, numbered as in library.py.
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
  template <typename AnyCall>
  Dropout(const AnyCall& call, int64_t b, int64_t h)
      : on(call.dropout > 0), factor_(1 / (1 - call.dropout)), least_(uint32_t(call.dropout * 4294967296.0)) {
    if (!on) return;
    head_ = mixed(uint32_t(b * call.heads + h)) ^ uint32_t(*call.seed);
    head_ = mixed(head_);
    high_ = uint32_t(uint64_t(*call.seed) >> 32);
  }

  // Zero the dropped columns in [first, wide) of a query's row, whose first key is `key`; scale up the others.
  template <typename T>
  void apply(T* row, int64_t query, int64_t key, int64_t first, int64_t wide) const {
    const uint32_t begin = start(query) + uint32_t(key) * STEP, least = least_;
    const T factor = T(factor_);
    for (int64_t j = first; j < wide; ++j) row[j] = mixed(begin + uint32_t(j) * STEP) >= least ? row[j] * factor : T(0);
  }

  // Likewise of one key's weights for several queries, each with its start.
  template <typename T>
  void apply(T* column, const uint32_t* starts, int64_t queries, int64_t key) const {
    const uint32_t step = uint32_t(key) * STEP, least = least_;
    const T factor = T(factor_);
    for (int64_t i = 0; i < queries; ++i) column[i] = mixed(starts[i] + step) >= least ? column[i] * factor : T(0);
  }

  // Where a query's sequence of hashes starts.
  uint32_t start(int64_t query) const { return mixed(head_ ^ (uint32_t(query) + high_)); }

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

// Neighbouring tokens of one document whose positions go up by one.
struct Run {
  int64_t begin, end;  // counted from the start of its span
  int64_t pos, doc;    // of the first
};

// A block of neighbouring tokens and what is known of their positions.
struct Span {
  int64_t begin, end;         // tokens
  int64_t low, high;          // least and greatest position; low > high when all are padding
  int64_t doc_low, doc_high;  // likewise for documents
  bool unit;                  // positions go up by one, no padding
  std::vector<Run> runs;      // of all tokens that are not padding

  int64_t size() const { return end - begin; }
};

inline std::vector<Span> spans(const int64_t* pos, const int64_t* docs, int64_t tokens, int64_t step) {
  std::vector<Span> result;
  for (int64_t begin = 0; begin < tokens; begin += step) {
    constexpr int64_t most = std::numeric_limits<int64_t>::max(), least = std::numeric_limits<int64_t>::min();
    Span span{begin, std::min(tokens, begin + step), most, least, most, least, true, {}};
    const int64_t first = pos[begin], own = docs == nullptr ? 0 : docs[begin];
    int64_t unlike = first < 0;  // the usual: one run
    for (int64_t i = begin; i < span.end; ++i) unlike |= pos[i] ^ (first + (i - begin));
    for (int64_t i = begin; docs != nullptr && i < span.end; ++i) unlike |= docs[i] ^ own;
    if (unlike == 0) {
      result.push_back(
          {begin, span.end, first, first + span.size() - 1, own, own, true, {{0, span.size(), first, own}}});
      continue;
    }
    for (int64_t i = begin; i < span.end; ++i) {
      span.unit &= pos[i] >= 0 && pos[i] == first + (i - begin);
      if (pos[i] < 0) continue;
      const int64_t doc = docs == nullptr ? 0 : docs[i];
      const bool more = !span.runs.empty() && span.runs.back().end == i - begin && pos[i] == pos[i - 1] + 1 &&
                        doc == span.runs.back().doc;
      if (more)
        ++span.runs.back().end;
      else
        span.runs.push_back({i - begin, i - begin + 1, pos[i], doc});
      span.low = std::min(span.low, pos[i]);
      span.high = std::max(span.high, pos[i]);
      span.doc_low = std::min(span.doc_low, doc);
      span.doc_high = std::max(span.doc_high, doc);
    }
    result.push_back(span);
  }
  return result;
}

// The positions of each sequence, padding aside.
inline std::vector<Range> ranges(const std::vector<std::vector<Span>>& sequences) {
  std::vector<Range> result(sequences.size());
  for (size_t b = 0; b < sequences.size(); ++b)
    for (const Span& span : sequences[b]) result[b] = result[b].with({span.low, span.high});
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
  bool masked;          // perhaps by the call's mask

  int64_t rows() const { return q->size(); }
};

// Whether the reach, documents and padding show a pair of a tile.
inline bool visible(const Call& call, int64_t b, const Tile& tile, int64_t i, int64_t j) {
  if (j >= tile.last) return false;
  const int64_t query = tile.q->begin + i, key = tile.k->begin + j;
  const int64_t m = call.q_pos[b * call.q_pos_batch + query], n = call.k_pos[b * call.k_pos_batch + key];
  return m >= 0 && n >= 0 && n - m <= call.future && n - m >= -call.past &&
         (call.q_docs == nullptr ||
          call.q_docs[b * call.q_docs_batch + query] == call.k_docs[b * call.k_docs_batch + key]);
}

// Find the columns of a tile to compute, of which the call's mask shows what `state` says; false if all of it is
// hidden.
template <typename T, typename AnyCall>
bool look(const AnyCall& call, const Span& q, const Span& k, Mask::State state, Tile& tile) {
  if (state == Mask::HIDDEN || q.low > q.high || k.low > k.high) return false;
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
  tile.masked = state == Mask::SOME;
  tile.edge |= tile.masked || tile.wide != tile.last;
  return true;
}

// By sequence and head, how many blocks of keys each span of queries sees.
template <typename AnyCall, typename AnyShared>
std::vector<std::vector<int64_t>> blocks_seen(const AnyCall& call, const AnyShared& shared) {
  std::vector<std::vector<int64_t>> seen(call.batch * call.heads);
  for (int64_t bh = 0; bh < call.batch * call.heads; ++bh) {
    const int64_t b = bh / call.heads, h = bh % call.heads;
    for (int64_t iq = 0; iq < int64_t(shared.q[b].size()); ++iq) {
      int64_t blocks = 0;
      for (int64_t ik = 0; ik < int64_t(shared.k[b].size()); ++ik) {
        Tile tile;
        blocks += shared.look(call, b, h, iq, ik, tile);
      }
      seen[bh].push_back(blocks);
    }
  }
  return seen;
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
        q_slopes_(
            call.q_slopes == nullptr ? nullptr
                                     : at_row<T>(call.q_slopes, b, call.q_slopes_batch, h, call.q_slopes_head, 0, 0)),
        k_slopes_(
            call.k_slopes == nullptr ? nullptr
                                     : at_row<T>(call.k_slopes, b, call.k_slopes_batch, h, call.k_slopes_head, 0, 0)),
        mask_(call, b, h),
        rows_(given<T>(queries_of(call), b, h)),
        cols_(given<T>(keys_of(call), b, h)),
        h_curve_(h * (call.curve_knots + 1)),
        curve_rate_(b * call.curve_rate_batch),
        curve_breaks_(b * call.curve_breaks_batch),
        pairs_(b * call.pairs_batch + h * call.pairs_head) {
    if (call.tails != nullptr) {
      past_tail_ = static_cast<const T*>(call.tails)[2 * h];
      future_tail_ = static_cast<const T*>(call.tails)[2 * h + 1];
    }
  }

  // Tables of tokens that were computed.
  void set_rows(const Tables<T>& rows) { rows_ = rows; }
  void set_cols(const Tables<T>& cols) { cols_ = cols; }
  // The keys' tables, computed entry by entry: for few queries, which need few of them.
  void set_cols(const Products<T>* products, int64_t b, int64_t h) {
    single_ = products;
    b_ = b;
    h_ = h;
    cols_.width = products->width;
    cols_.left = products->left;
  }

  // The table at a distance; in an image, at that of raster().
  T at(int64_t distance) const {
    const int64_t entry = distance + call_.left, inside = clamp(entry, call_.width);
    return table_[inside] + (entry < inside ? past_tail_ : future_tail_) * T(std::abs(entry - inside));
  }

  // Values of workspace for tiles of this size.
  static int64_t room(const Call& call, int64_t rows, int64_t columns) {
    return (2 + lines(call, rows)) * apart(rows, columns) + round_up(rows, LANES<T>) * columns;
  }
  // The table over a tile's distances is one line; in an image one for each column that queries are in.
  static int64_t lines(const Call& call, int64_t rows) { return call.row > 0 ? std::min(call.row, rows) : 1; }
  // Values of a line, and of whatever else goes over a tile's distances.
  static int64_t apart(int64_t rows, int64_t columns) { return rows + columns + LANES<T>; }

  // Prepare for the rows of a tile, `columns` apart in memory. `room` is workspace until the next tile.
  void enter(const Tile& tile, int64_t columns, T* room) {
    tile_ = &tile;
    line_ = away_ = levels_ = nullptr;
    above_ = nullptr;
    all_ = T(0);
    if (!tile.regular) return;
    const int64_t lowest = lowest_distance(), count = tile.rows() - 1 + tile.wide;
    if (table_ != nullptr) {
      const int64_t last_query = q_pos_[tile.q->begin] + tile.rows() - 1, first_query = q_pos_[tile.q->begin];
      const int64_t from = raster(last_query, lowest + tile.first) + call_.left,
                    to = raster(first_query, tile.distance + tile.wide - 1) + call_.left;
      // a tail whose gradient is needed counts even if it is zero
      const bool flat = call_.d_tails == nullptr;
      if (to <= 0 && flat && past_tail_ == T(0)) {
        all_ = table_[all_entry_ = 0];
      } else if (from >= call_.width - 1 && flat && future_tail_ == T(0)) {
        all_ = table_[all_entry_ = call_.width - 1];
      } else {
        line_ = room;
        apart_ = apart(tile.rows(), columns);
        each_line([&](int64_t line, int64_t first, int64_t last, int64_t apart) {
          fill(room + line * apart_, first, last, apart);
        });
      }
    }
    room += lines(call_, tile.rows()) * apart(tile.rows(), columns);
    if (q_slopes_ != nullptr || k_slopes_ != nullptr) {
      away_ = room;
      for (int64_t u = tile.first; u < count; ++u) room[u] = T(std::abs(lowest + u));
    }
    room += apart(tile.rows(), columns);
    if (call_.curve_level != nullptr) {
      levels_ = room;
      for (int64_t u = tile.first; u < count; ++u) room[u] = level(std::abs(lowest + u));
    }
    room += apart(tile.rows(), columns);
    if (cols_ || single_ != nullptr) enter_columns(columns, room);
  }

  // What is added to row i of the tile; `row` has room for as many values as the tile is wide.
  Added<T> of_row(int64_t i, T* row) const {
    const Tile& tile = *tile_;
    if (!tile.regular) {
      irregular(i, row);
      hide(i, tile.first, tile.last, row);
      return {row, T(0)};
    }
    const T* each[3];
    int count = 0;
    if (line_ != nullptr) each[count++] = line_of(line_, i);
    if (per_key_ != nullptr) each[count++] = per_key_ + tile.k->begin;
    if (above_ != nullptr) each[count++] = above_ + i * above_stride_;
    T all = all_;
    const T* own = nullptr;
    int64_t entry = 0;  // of column 0 in the query's own table
    if (rows_) {
      own = rows_.of(tile.q->begin + i);
      entry = tile.distance - i + rows_.left;
      if (entry + tile.wide - 1 <= 0) {
        all += own[0];
        own = nullptr;
      } else if (entry + tile.first >= rows_.width - 1) {
        all += own[rows_.width - 1];
        own = nullptr;
      }
    }
    if (!tile.edge && own == nullptr && away_ == nullptr && levels_ == nullptr) {
      if (count <= 1 && call_.pairs == nullptr) return {count == 0 ? nullptr : each[0], all};
      if (count == 0 && pairs_are<T>()) return {pair<T>(i), all};
    }
    int64_t first = tile.first, last = tile.last;
    if (tile.edge) {
      first = clamp(-call_.past - tile.distance + i, first, last);
      last = clamp(call_.future - tile.distance + i + 1, first, last);
      std::fill(row + tile.first, row + first, -std::numeric_limits<T>::infinity());
      std::fill(row + last, row + tile.wide, -std::numeric_limits<T>::infinity());
    }
    if (count == 0) std::fill(row + first, row + last, T(0));
    if (count == 1 && own == nullptr) std::copy(each[0] + first, each[0] + last, row + first);
    if (count >= 2)
      for (int64_t j = first; j < last; ++j) row[j] = each[0][j] + each[1][j];
    if (count == 3)
      for (int64_t j = first; j < last; ++j) row[j] += each[2][j];
    if (own != nullptr) add_table(row, count == 1 ? each[0] : row, own, rows_.width, first, last, entry);
    if (away_ != nullptr) {
      const T* away = away_ + (tile.rows() - 1 - i);
      const T slope = q_slopes_ == nullptr ? T(0) : q_slopes_[tile.q->begin + i];
      const T* slopes = k_slopes_ == nullptr ? nullptr : k_slopes_ + tile.k->begin;
      if (slopes == nullptr)
        for (int64_t j = first; j < last; ++j) row[j] += away[j] * slope;
      else
        for (int64_t j = first; j < last; ++j) row[j] += away[j] * (slope + slopes[j]);
    }
    if (levels_ != nullptr) {
      const T* levels = levels_ + (tile.rows() - 1 - i);
      each_piece(tile.q->begin + i, first, last, tile.distance - i, [&](const Piece& piece) {
        for (int64_t j = piece.first; j < piece.last; ++j) row[j] += piece.base + piece.slope * levels[j];
      });
    }
    add_pairs(i, first, last, row);
    hide(i, first, last, row);
    return {row, all};
  }

  // What of row i has a distance, by stretches: columns [first, last), and the distance of column 0.
  template <typename Work>
  void by_distance(int64_t i, const Work& work) const {
    if (tile_->regular)
      work(tile_->first, tile_->last, tile_->distance - i);
    else
      each_stretch(i, work);
  }

  // An upper bound of what the table and the keys add to any score of the tile.
  T most(const Tile& tile) const {
    if (call_.pairs != nullptr) return std::numeric_limits<T>::infinity();
    T bound = T(0);
    const int64_t nearest = tile.k->high - tile.q->low, furthest = tile.k->low - tile.q->high;
    if (table_ != nullptr) {
      // linear beyond the ends, so the greatest value is at an end of the tile or inside the table
      const int64_t low = raster(tile.q->high, furthest), high = raster(tile.q->low, nearest);
      bound = std::max(at(low), at(high));
      const int64_t from = std::max<int64_t>(low + call_.left, 0);
      const int64_t to = std::min(high + call_.left, call_.width - 1);
      if (from <= to) bound = std::max(bound, *std::max_element(table_ + from, table_ + to + 1));
    }
    if (per_key_ != nullptr) bound += *std::max_element(per_key_ + tile.k->begin, per_key_ + tile.k->end);
    return bound;
  }

  static int64_t clamp(int64_t entry, int64_t width) { return std::min(std::max<int64_t>(entry, 0), width - 1); }
  static int64_t clamp(int64_t x, int64_t low, int64_t high) { return std::min(std::max(x, low), high); }

 protected:
  // Squares of a tile, a vector wide: whether their entries are all inside of the keys' tables, or all one end.
  enum class Square { INSIDE, END, OTHER };
  // Work on squares from query i and key j of the tile on; `entry` is that of query 0 and key 0. `lowest` is the entry
  // of the last query and the first key, the lowest.
  template <typename Work>
  void each_square(int64_t entry, const Work& work) const {
    constexpr int64_t lanes = LANES<T>;
    const int64_t rows = tile_->rows(), keys = tile_->k->size();
    for (int64_t j = tile_->first; j < tile_->wide; j += lanes)
      for (int64_t i = 0; i < rows; i += lanes) {
        const int64_t lowest = entry + j - (i + lanes - 1), highest = lowest + 2 * (lanes - 1);
        const bool whole = j + lanes <= keys && i + lanes <= rows;
        Square kind = Square::OTHER;
        if (whole && (highest <= 0 || lowest >= cols_.width - 1)) kind = Square::END;
        if (whole && lowest >= 0 && highest < cols_.width) kind = Square::INSIDE;
        work(i, j, lowest, kind);
      }
  }

  // Columns [first, last) of a row whose values are base + slope · level, in piece `index`.
  struct Piece {
    int64_t index, first, last;
    T base, slope;
  };
  T level(int64_t away) const {
    return static_cast<const T*>(call_.curve_level)[std::min(away, call_.curve_width - 1)];
  }
  T rate(int64_t query) const { return static_cast<const T*>(call_.curve_rate)[curve_rate_ + query]; }
  // The pieces of columns [first, last) of a row; `apart` is the distance of column 0.
  template <typename Work>
  void each_piece(int64_t query, int64_t first, int64_t last, int64_t apart, const Work& work) const {
    const int64_t knots = call_.curve_knots, zero = clamp(-apart, first, last);  // from there on distances are >= 0
    const int64_t* breaks = call_.curve_breaks + curve_breaks_ + query * knots;
    const T *base = static_cast<const T*>(call_.curve_base) + h_curve_,
            *slope = static_cast<const T*>(call_.curve_slope) + h_curve_;
    const T rate = this->rate(query);
    for (int64_t index = 0; index <= knots; ++index) {
      const int64_t low = index == 0 ? 0 : breaks[index - 1];
      const int64_t high = index == knots ? std::numeric_limits<int64_t>::max() / 4 : breaks[index];
      if (low >= high) continue;
      Piece piece{
          index, clamp(1 - high - apart, first, zero), clamp(1 - low - apart, first, zero), base[index],
          slope[index] * rate};
      if (piece.first < piece.last) work(piece);
      piece.first = clamp(low - apart, zero, last);
      piece.last = clamp(high - apart, zero, last);
      if (piece.first < piece.last) work(piece);
    }
  }

  int64_t lowest_distance() const { return tile_->distance - (tile_->rows() - 1); }

  // The distance in the table of a token that is `distance` after a query: where rows are those of an image, each
  // offset of rows and columns has its own, row offset · (2 row − 1) + column offset.
  int64_t raster(int64_t query, int64_t distance) const {
    if (call_.row == 0) return distance;
    const int64_t at = query + distance;
    return distance + (at / call_.row - (at % call_.row < 0) - query / call_.row) * (call_.row - 1);
  }
  // Stretches of numbers [first, last), of which number 0 is `apart` after a query, whose distances in the table go up
  // by one: work(first, last, distance of number 0).
  template <typename Work>
  void each_image_row(int64_t query, int64_t first, int64_t last, int64_t apart, const Work& work) const {
    if (call_.row == 0) return work(first, last, apart);
    while (first < last) {
      const int64_t column = ((query + apart + first) % call_.row + call_.row) % call_.row;
      const int64_t next = std::min(last, first + call_.row - column);
      work(first, next, raster(query, apart + first) - first);
      first = next;
    }
  }
  // The stretches of all lines of a regular tile: work(line, first, last, distance of number 0), where number u is at
  // distance lowest + u.
  template <typename Work>
  void each_line(const Work& work) const {
    const Tile& tile = *tile_;
    const int64_t rows = tile.rows(), lines = Terms::lines(call_, rows);
    for (int64_t line = 0; line < lines; ++line) {
      const int64_t last = line + (rows - 1 - line) / lines * lines;  // the last of the line's queries
      each_image_row(
          q_pos_[tile.q->begin] + line, rows - 1 - last + tile.first, rows - 1 - line + tile.wide,
          tile.distance - (rows - 1),
          [&](int64_t first, int64_t last, int64_t apart) { work(line, first, last, apart); });
    }
  }
  // Where row i of the tile begins in lines.
  template <typename Values>
  Values* line_of(Values* lines, int64_t i) const {
    return lines + i % Terms::lines(call_, tile_->rows()) * apart_ + (tile_->rows() - 1 - i);
  }
  // The stretches of columns that row i sees, each with the distance of column 0 if the stretch went on until there.
  template <typename Work>
  void each_stretch(int64_t i, const Work& work) const {
    const int64_t query = tile_->q->begin + i, at = q_pos_[query];
    if (at < 0) return;
    for (const Run& run : tile_->k->runs) {
      if (q_docs_ != nullptr && q_docs_[query] != run.doc) continue;
      const int64_t apart = run.pos - at - run.begin;
      const int64_t first = clamp(-call_.past - apart, run.begin, run.end);
      const int64_t last = clamp(call_.future - apart + 1, first, run.end);
      if (first < last) work(first, last, apart);
    }
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

  // What the call's mask hides of columns [first, last) of row i.
  void hide(int64_t i, int64_t first, int64_t last, T* row) const {
    if (!tile_->masked || first >= last) return;
    const int64_t key = tile_->k->begin;
    const uint8_t* seen = mask_.row(tile_->q->begin + i, key + first, key + last) - first;
    for (int64_t j = first; j < last; ++j) row[j] = seen[j] ? row[j] : -std::numeric_limits<T>::infinity();
  }

  const Call& call_;
  const int64_t *q_pos_, *k_pos_, *q_docs_, *k_docs_;
  const T *per_key_, *table_, *q_slopes_, *k_slopes_;
  const Mask mask_;
  Tables<T> rows_, cols_;
  const Products<T>* single_ = nullptr;
  int64_t b_ = 0, h_ = 0;
  const int64_t h_curve_, curve_rate_, curve_breaks_, pairs_;
  T past_tail_ = T(0), future_tail_ = T(0);
  const Tile* tile_ = nullptr;
  const T* line_ = nullptr;  // the table over the tile's distances, lines that are `apart_` values apart, or null
  int64_t apart_ = 0;
  T all_ = T(0);               // or its one value there,
  int64_t all_entry_ = 0;      // which is this entry's
  const T* levels_ = nullptr;  // of the curve, over the tile's distances
  const T* away_ = nullptr;    // how far apart, over the tile's distances
  T* above_ = nullptr;         // the keys' tables over the tile,
  int64_t above_stride_ = 0;   // 0 if all its queries share an entry,
  int64_t above_entry_ = 0;    // which is this one

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

  T col(int64_t key, int64_t entry) const {
    entry = clamp(entry, cols_.width);
    return single_ == nullptr ? cols_.of(key)[entry] : single_->single(b_, h_, key, entry);
  }

  // Lay out the keys' tables as rows of the tile.
  void enter_columns(int64_t columns, T* room) {
    constexpr int64_t lanes = LANES<T>;
    const Tile& tile = *tile_;
    const int64_t rows = tile.rows(), keys = tile.k->size(), entry = tile.distance + cols_.left;  // of (0, 0)
    above_ = room;
    if (single_ != nullptr) {
      above_stride_ = columns;
      for (int64_t i = 0; i < rows; ++i)
        for (int64_t j = tile.first; j < tile.wide; ++j)
          above_[i * columns + j] = j < keys ? col(tile.k->begin + j, entry + j - i) : T(0);
      return;
    }
    if (entry + tile.wide - 1 <= 0 || entry + tile.first - (rows - 1) >= cols_.width - 1) {
      above_stride_ = 0;
      above_entry_ = entry + tile.wide - 1 <= 0 ? 0 : cols_.width - 1;
      for (int64_t j = tile.first; j < tile.wide; ++j)
        above_[j] = j < keys ? cols_.of(tile.k->begin + j)[above_entry_] : T(0);
      return;
    }
    above_stride_ = columns;
    each_square(entry, [&](int64_t i, int64_t j, int64_t lowest, Square kind) {
      T* to = above_ + i * columns + j;
      const T* from = cols_.of(tile.k->begin + j);
      if (kind == Square::INSIDE) {  // its rows upside down: a key's entries fall with the query
        at::vec::transpose_mxn<T, lanes, lanes>(from + lowest, cols_.stride + 1, to + (lanes - 1) * columns, -columns);
        return;
      }
      if (kind == Square::END) {
        T ends[lanes];
        for (int64_t m = 0; m < lanes; ++m) ends[m] = from[m * cols_.stride + clamp(lowest, cols_.width)];
        for (int64_t r = 0; r < lanes; ++r) std::copy_n(ends, lanes, to + r * columns);
        return;
      }
      for (int64_t m = 0; m < lanes; ++m, from += cols_.stride)
        for (int64_t r = 0; r < lanes; ++r)
          to[r * columns + m] = j + m < keys ? from[clamp(lowest + lanes - 1 - r + m, cols_.width)] : T(0);
    });
  }

  void irregular(int64_t i, T* row) const {
    const Tile& tile = *tile_;
    const int64_t query = tile.q->begin + i;
    std::fill(row + tile.first, row + tile.wide, -std::numeric_limits<T>::infinity());
    each_stretch(i, [&](int64_t first, int64_t last, int64_t apart) {
      if (table_ != nullptr)
        each_image_row(q_pos_[query], first, last, apart, [&](int64_t first, int64_t last, int64_t apart) {
          fill(row, first, last, apart);
        });
      else
        std::fill(row + first, row + last, T(0));
      const auto add_key = [&](const T* keys) {
        for (int64_t j = first; j < last; ++j) row[j] += keys[j];
      };
      if (per_key_ != nullptr) add_key(per_key_ + tile.k->begin);
      if (rows_) add_table(row, row, rows_.of(query), rows_.width, first, last, apart + rows_.left);
      if (cols_ || single_ != nullptr)
        for (int64_t j = first; j < last; ++j) row[j] += col(tile.k->begin + j, apart + j + cols_.left);
      if (q_slopes_ != nullptr)
        for (int64_t j = first; j < last; ++j) row[j] += T(std::abs(apart + j)) * q_slopes_[query];
      if (k_slopes_ != nullptr)
        for (int64_t j = first; j < last; ++j) row[j] += T(std::abs(apart + j)) * k_slopes_[tile.k->begin + j];
      if (call_.curve_level != nullptr)
        each_piece(query, first, last, apart, [&](const Piece& piece) {
          for (int64_t j = piece.first; j < piece.last; ++j)
            row[j] += piece.base + piece.slope * level(std::abs(apart + j));
        });
    });
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

  // Of a single block of keys nothing is negligible: each row has its greatest weight in it. And in decoding, reading
  // the keys and values for their norms would cost more than it saves.
  static bool are_needed(const Call& call, int64_t block) {
    return call.skip && call.keys > block && !(call.decoding && call.queries <= FEW);
  }

  template <typename In>
  void measure(
      const Call& call, int64_t b, int64_t h, const std::vector<Span>& q_spans, const std::vector<Span>& k_spans) {
    if (!may_decay(call, h)) return;
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
    // of these no bound is known
    if (call.pairs != nullptr || call.rows_x != nullptr || call.cols != nullptr || call.cols_x != nullptr) return false;
    if (call.q_slopes != nullptr || call.k_slopes != nullptr || call.curve_level != nullptr) return false;
    if (call.per_key != nullptr || call.rows != nullptr || call.tails != nullptr) return true;
    if (call.table == nullptr) return false;
    const T* table = static_cast<const T*>(call.table) + h * call.width;
    const auto ends = std::minmax_element(table, table + call.width);
    return *ends.second - *ends.first > -std::log(std::numeric_limits<T>::epsilon());
  }
};

}  // namespace headway
