// Makes plans from arbitrary bytes. Every plan that decode_plan accepts must run inside its
// buffers, which are as small as it allows, and give the bits of the reference.
//
// Build with -DDFPJAX_BUILD_FUZZER=ON; libFuzzer calls LLVMFuzzerTestOneInput, or driver.cc where
// the compiler has none.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "contraction/contract.h"
#include "contraction/kernels/table.h"
#include "plan/plan.h"
#include "tests/executor.h"
#include "tests/reference.h"

namespace dfpjax {
namespace {

constexpr int64_t kMostWork = 300000;      // multiply-adds of plans that are run
constexpr int64_t kMostElements = 200000;  // of a buffer

// Reads numbers from the input, and zeros after its end.
class Bytes {
 public:
  Bytes(const uint8_t* data, size_t size) : data_(data), end_(data + size) {}

  int64_t byte() { return data_ == end_ ? 0 : *data_++; }
  int64_t below(int64_t limit) { return byte() % limit; }
  bool one_in(int64_t count) { return byte() % count == 1; }
  int64_t between(int64_t low, int64_t high) { return low + below(high - low + 1); }
  template <size_t count>
  int64_t any_of(const int64_t (&values)[count]) {
    return values[below(count)];
  }
  // Mostly small, seldom extreme.
  int64_t number() {
    constexpr int64_t kExtremes[] = {INT64_MIN, INT64_MAX,        INT32_MIN, INT32_MAX,
                                     -1,        int64_t{1} << 40, 1 << 30,   -(1 << 30),
                                     1 << 16,   int64_t{1} << 61};
    return one_in(4) ? any_of(kExtremes) : byte() - 100;
  }

 private:
  const uint8_t* data_;
  const uint8_t* end_;
};

std::vector<int64_t> arbitrary_code(Bytes* in) {
  std::vector<int64_t> code = {3, 0, in->between(1, 2)};
  for (int64_t count = in->between(8, 80); count > 0; --count)
    code.push_back(in->one_in(2) ? in->below(4) : in->number());
  return code;
}

// Sets the strides of a dense tensor with these dimensions, in an order that the input chooses.
// Returns the number of its elements.
int64_t dense(Bytes* in, std::vector<Dim*> dims, int64_t Dim::* stride, bool keep_last) {
  for (size_t i = dims.size(); i > (keep_last ? 2u : 1u); --i)
    std::swap(dims[i - (keep_last ? 2 : 1)],
              dims[static_cast<size_t>(in->below(static_cast<int64_t>(i - (keep_last ? 1 : 0))))]);
  int64_t size = 1;
  for (size_t i = dims.size(); i-- > 0;) {
    dims[i]->*stride = size;
    size = std::min(size, int64_t{1} << 40) * std::clamp<int64_t>(dims[i]->extent, 1, 1 << 20);
  }
  return size;
}

using Groups = std::initializer_list<std::vector<Dim>*>;

std::vector<Dim*> refer(Groups groups) {
  std::vector<Dim*> dims;
  for (auto* group : groups)
    for (Dim& d : *group) dims.push_back(&d);
  return dims;
}

// The base that makes the least address 0.
int64_t base(const std::vector<Dim*>& dims, int64_t Dim::* stride) {
  int64_t low = 0;
  for (const Dim* d : dims)
    if (d->*stride < 0 && d->extent > 0 && d->extent < 1000) low -= d->*stride * (d->extent - 1);
  return low;
}

// Writes a part. Its header begins with `start`.
void put_code(std::initializer_list<int64_t> start, Groups groups,
              const std::vector<Window>& windows, std::vector<int64_t>* code) {
  code->insert(code->end(), start);
  for (const auto* dims : groups) code->push_back(static_cast<int64_t>(dims->size()));
  code->push_back(static_cast<int64_t>(windows.size()));
  for (const Dim* d : refer(groups))
    code->insert(code->end(), {d->extent, d->stride_a, d->stride_b, d->stride_c, d->exp_a, d->exp_b,
                               d->window, d->coef});
  for (const Window& w : windows) code->insert(code->end(), {w.size, w.stride_a, w.offset});
}

// Writes the number of grids, and grids of small blocks.
void put_grids(Bytes* in, bool in_blocks, std::vector<int64_t>* code) {
  code->push_back(in_blocks ? 2 : 0);
  for (int i = 0; in_blocks && i < 2; ++i) {
    const int64_t columns = in->between(1, 70), rows = in->between(1, 9);
    code->insert(code->end(), {rows * columns, columns, int64_t{1} << in->below(4),
                               int64_t{1} << in->below(7), in->below(2)});
    if (in->one_in(40)) code->back() = in->number();
  }
}

// Writes a part that is likely to be accepted; its outputs begin at *base_c.
void put_part(Bytes* in, bool in_blocks, int64_t* base_c, bool* disjoint,
              std::vector<int64_t>* code) {
  constexpr int64_t kExtents[] = {1, 2, 3, 4, 5, 6, 7, 13, 16, 17, 32, 64, 65, 100, 256, 300, 0};
  const bool lanes = in->one_in(4);
  std::vector<Dim> g(static_cast<size_t>(lanes ? in->between(1, 2) : in->below(3)));
  std::vector<Dim> m(static_cast<size_t>(in->below(3))), n(static_cast<size_t>(in->below(3)));
  std::vector<Dim> k(static_cast<size_t>(in->below(4)));
  if (lanes) n.clear();
  std::vector<Window> windows(static_cast<size_t>(in->below(3)));
  for (Dim* d : refer({&g, &m, &n, &k})) {
    *d = {in->one_in(8) ? in->any_of(kExtents) : in->between(1, 9), 0, 0, 0, 0, 0, -1, 0};
    if (in->one_in(60)) d->extent = in->number();
  }
  // The lanes are the last dimension of each tensor.
  const auto ordered = [&](std::vector<Dim*> dims) {
    if (lanes) {
      dims.erase(std::find(dims.begin(), dims.end(), &g.back()));
      dims.push_back(&g.back());
    }
    return dims;
  };
  const int64_t outputs = dense(in, ordered(refer({&g, &m, &n})), &Dim::stride_c, lanes);
  dense(in, ordered(refer({&g, &m, &k})), &Dim::stride_a, lanes);
  dense(in, ordered(refer({&g, &n, &k})), &Dim::stride_b, lanes);
  for (Window& w : windows) w = {in->between(1, 12), in->between(1, 40), in->between(-4, 4)};
  for (Dim* d : refer({&m, &k})) {
    if (windows.empty() || in->one_in(2)) {
      if (in->one_in(3)) d->stride_a = in->between(-3, 20);
      continue;
    }
    d->window = static_cast<int>(in->below(static_cast<int64_t>(windows.size())));
    d->coef = in->one_in(60) ? in->number() : in->between(-2, 3);
    d->stride_a = 0;
  }
  for (Dim* d : refer({&n, &k}))
    if (in->one_in(4)) d->stride_b = in->between(-3, 20);
  for (Dim* d : refer({&g, &m}))
    if (!in_blocks && in->one_in(3)) d->exp_a = in->between(-1, 3);
  for (Dim* d : refer({&g, &n}))
    if (!in_blocks && in->one_in(3)) d->exp_b = in->between(-1, 3);
  if (in->one_in(20)) {
    for (Dim* d : refer({&g, &m, &n})) d->stride_c = in->number();
    *disjoint = false;
  }
  const int64_t at_a = base(refer({&g, &m, &k}), &Dim::stride_a) + (in->one_in(40) ? -1 : 0);
  const int64_t at_b = base(refer({&g, &n, &k}), &Dim::stride_b) + (in->one_in(40) ? -1 : 0);
  const int64_t split = in->one_in(30) ? in->number() : in->between(1, 3);
  const int64_t tile = in->one_in(60) ? in->below(5) : 0;
  put_code({lanes ? 1 : 0, at_a, at_b, *base_c, split, tile}, {&g, &m, &n, &k}, windows, code);
  *base_c += outputs;
}

// The lanes of Winograd parts, and the columns of their operands' grids.
struct Lanes {
  bool along_k;  // whether B is contiguous along the channels
  int64_t channels, columns, columns_a, columns_b;
};

// Writes grids that Winograd parts may have.
Lanes put_winograd_grids(Bytes* in, std::vector<int64_t>* code) {
  constexpr int64_t kLanes[] = {2, 15, 16, 17, 33, 63, 64, 65, 70, 130, 256, 257, 300};
  Lanes lanes{};
  lanes.along_k = in->one_in(3);
  lanes.channels = in->one_in(4) ? in->any_of(kLanes) : in->between(2, 9);
  lanes.columns = in->one_in(4) ? in->any_of(kLanes) : in->between(2, 9);
  lanes.columns_a = lanes.channels * in->between(1, 3);
  lanes.columns_b = (lanes.along_k ? lanes.channels : lanes.columns) * in->between(1, 3);
  code->push_back(2);
  for (const int64_t columns : {lanes.columns_a, lanes.columns_b})
    code->insert(code->end(), {in->between(1, 9) * columns, columns, int64_t{1} << in->below(4),
                               int64_t{1} << in->below(10), in->below(2)});
  return lanes;
}

// Writes a Winograd part that is likely to be accepted.
void put_winograd(Bytes* in, const Lanes& lanes, int64_t* base_c, bool* disjoint,
                  std::vector<int64_t>* code) {
  const bool along_m = lanes.along_k || in->one_in(2);
  const int axes = static_cast<int>(in->between(1, 2));
  const int64_t tap_count = in->one_in(3) ? 5 : 3;
  std::vector<Dim> g(static_cast<size_t>(in->below(3))), n(1), m, k;
  std::vector<Dim>&tiled = along_m ? m : k, &taps = along_m ? k : m;
  const Dim plain{1, 0, 0, 0, 0, 0, -1, 0};
  for (Dim& d : g) d = plain, d.extent = in->between(1, 3);
  std::vector<Window> windows;
  for (int w = 0; w < axes; ++w) {
    const int64_t extent = in->one_in(4) ? in->between(1, 40) : in->between(1, 9);
    tiled.push_back({extent, 0, 0, 0, 0, 0, w, in->one_in(3) ? -1 : 1});
    taps.push_back({tap_count, 0, 0, 0, 0, 0, w, in->one_in(3) ? -1 : 1});
    windows.push_back(
        {in->between(1, 20), lanes.columns_a * in->between(1, 20), in->between(-4, 20)});
  }
  const auto insert = [in](std::vector<Dim>* dims, const Dim& d) {
    dims->insert(dims->begin() + in->below(static_cast<int64_t>(dims->size()) + 1), d);
  };
  for (int64_t more = in->below(3); more > 0; --more) {
    Dim d = plain;
    d.extent = in->between(1, 5);
    insert(&tiled, d);
  }
  n[0] = plain;
  n[0].extent = lanes.columns;
  Dim channel = plain;
  channel.extent = lanes.channels;
  insert(&taps, channel);
  if (in->one_in(4)) std::reverse(tiled.begin(), tiled.end());

  // Contiguous lanes, and everything else at a distance of whole rows of the grid.
  const auto spread = [in](std::vector<Dim*> dims, int64_t Dim::* stride, int64_t columns,
                           int64_t width) {
    dense(in, dims, stride, false);
    for (Dim* d : dims) {
      d->*stride *= columns;
      if (in->one_in(8)) d->*stride = columns * in->between(-3, 6);
    }
    // Groups may lie in one row.
    if (!dims.empty() && columns > width && in->one_in(2)) dims[0]->*stride = width;
  };
  std::vector<Dim*> dims_a, dims_b;
  Dim* lane_a = nullptr;
  for (Dim& d : taps)
    if (d.window < 0) lane_a = &d;
  Dim* const lane_b = lanes.along_k ? lane_a : &n[0];
  for (Dim* d : refer({&g, &m, &k}))
    if (d != lane_a && d->window < 0) dims_a.push_back(d);
  for (Dim* d : refer({&g, &n, &k}))
    if (d != lane_b) dims_b.push_back(d);
  spread(dims_a, &Dim::stride_a, lanes.columns_a, lanes.channels);
  spread(dims_b, &Dim::stride_b, lanes.columns_b, lane_b->extent);
  lane_a->stride_a = lane_b->stride_b = 1;
  const int64_t outputs = dense(in, refer({&g, &m, &n}), &Dim::stride_c, true);
  for (Dim* d : refer({&g, &m, &n, &k}))
    if (in->one_in(200)) {
      d->extent = in->number();
      *disjoint = false;
    }
  const int64_t at_a = base(dims_a, &Dim::stride_a) + (in->one_in(20) ? in->between(-1, 3) : 0);
  const int64_t at_b = base(dims_b, &Dim::stride_b) + (in->one_in(20) ? in->between(-1, 3) : 0);
  const int64_t tile = in->one_in(40) ? in->below(6) : tap_count == 3 && in->one_in(2) ? 4 : 2;
  put_code({along_m ? 2 : 3, at_a, at_b, *base_c, in->between(1, 3), tile}, {&g, &m, &n, &k},
           windows, code);
  *base_c += outputs;
}

// The smallest size of one buffer with which the plan is accepted, or -1.
int64_t smallest(const std::vector<int64_t>& code, BufferSizes sizes,
                 int64_t BufferSizes::* which) {
  const auto accepted = [&](int64_t size) {
    std::vector<Part> parts;
    sizes.*which = size;
    return decode_plan(code.data(), static_cast<int64_t>(code.size()), sizes, &parts).empty();
  };
  if (!accepted(kMostElements)) return -1;
  int64_t low = 0, high = kMostElements;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    accepted(middle) ? high = middle : low = middle + 1;
  }
  return high;
}

// Has exactly `size` elements, so the address sanitizer sees every access beyond them.
template <class T>
std::unique_ptr<T[]> buffer(int64_t size, const std::function<T()>& element) {
  std::unique_ptr<T[]> data(new T[static_cast<size_t>(size)]);
  for (int64_t i = 0; i < size; ++i) data[static_cast<size_t>(i)] = element();
  return data;
}

[[noreturn]] void complain(const std::string& what) {
  std::fprintf(stderr, "%s\n", what.c_str());
  std::abort();
}

void run(Bytes* in, const std::vector<Part>& parts, const BufferSizes& sizes, bool disjoint) {
  uint32_t state = static_cast<uint32_t>(in->byte()) + 1;
  const auto random = [&state] { return state = state * 1664525u + 1013904223u, state >> 8; };
  const int64_t kind = in->below(4);
  const std::function<int16_t()> mantissa = [&]() -> int16_t {
    switch (kind) {
      case 0:
        return static_cast<int16_t>(random() % 200) - 100;
      case 1:
        return random() % 8 == 0 ? 32767 : -32768;
      case 2:
        return random() % 50 == 0 ? static_cast<int16_t>(random()) : 3;
      default:
        return static_cast<int16_t>(random());
    }
  };
  const int64_t spread = in->one_in(4) ? 300 : 20;
  const bool special = in->one_in(4);  // a few numbers are zero or not finite
  const std::function<int32_t()> exponent = [&]() -> int32_t {
    if (special && random() % 20 == 0) return random() % 4 == 0 ? 1 << 20 : -163;
    return static_cast<int32_t>(random() % static_cast<uint32_t>(spread)) - 20;
  };
  const auto a = buffer(sizes.a, mantissa), b = buffer(sizes.b, mantissa);
  const auto ea = buffer(sizes.ea, exponent), eb = buffer(sizes.eb, exponent);
  const std::function<float()> missing = [] { return -12345.0f; };
  const auto c = buffer(sizes.c, missing), expected = buffer(sizes.c, missing);
  const Operands operands{a.get(), b.get(), ea.get(), eb.get(), c.get()};
  Chains chains;
  // Winograd parts take certified chains alone.
  const bool direct =
      std::all_of(parts.begin(), parts.end(), [](const Part& p) { return p.tile == 0; });
  chains.length = direct && in->one_in(3) ? 2 << in->below(8) : 0;
  Counts saturated(1, 1);
  chains.saturated = &saturated;
  int64_t path = in->below(kIsaCount);
  while (!all_isas()[path].usable) ++path;
  {
    TestExecutor executor(static_cast<int>(in->between(1, 3)));
    run_plan(parts, operands, chains, contraction_kernels(static_cast<Isa>(path)), executor);
  }
  if (!disjoint) return;
  const ReferenceCounts counts =
      run_reference(parts, {a.get(), b.get(), ea.get(), eb.get(), expected.get()}, chains.length);
  int32_t count;
  saturated.write(&count);
  if (count != counts.saturated) complain("other chains are saturated than in the reference");
  for (int64_t i = 0; i < sizes.c; ++i) {
    const float got = c[static_cast<size_t>(i)], wanted = expected[static_cast<size_t>(i)];
    if (std::memcmp(&got, &wanted, sizeof got) != 0 && !(std::isnan(got) && std::isnan(wanted)))
      complain(std::string(all_isas()[path].name) + ": other bits than the reference");
  }
}

}  // namespace
}  // namespace dfpjax

// The number of inputs that were plans and ran; the driver reports it.
extern "C" {
uint64_t plans_run = 0;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace dfpjax;
  Bytes in(data, size);
  std::vector<int64_t> code;
  bool disjoint = true;
  int64_t outputs = 0;
  if (in.one_in(8)) {
    code = arbitrary_code(&in);
    outputs = in.byte();
    disjoint = false;
  } else {
    const int64_t parts = in.between(1, 2);
    code = {3};
    if (in.one_in(2)) {
      const Lanes lanes = put_winograd_grids(&in, &code);
      code.push_back(parts);
      for (int64_t i = 0; i < parts; ++i) put_winograd(&in, lanes, &outputs, &disjoint, &code);
    } else {
      const bool in_blocks = in.one_in(2);
      put_grids(&in, in_blocks, &code);
      code.push_back(parts);
      for (int64_t i = 0; i < parts; ++i) put_part(&in, in_blocks, &outputs, &disjoint, &code);
    }
    if (in.one_in(30)) {
      code[static_cast<size_t>(in.below(200)) % code.size()] = in.number();
      disjoint = false;  // it may be a stride of the outputs
    }
  }
  if (outputs > kMostElements) return 0;
  BufferSizes sizes{kMostElements, kMostElements, outputs, kMostElements, kMostElements};
  for (int64_t BufferSizes::* which :
       {&BufferSizes::a, &BufferSizes::b, &BufferSizes::ea, &BufferSizes::eb}) {
    sizes.*which = smallest(code, sizes, which);
    if (sizes.*which < 0) return 0;
  }
  sizes.ea = std::max<int64_t>(sizes.ea, 1);  // XLA's exponents have at least one element
  sizes.eb = std::max<int64_t>(sizes.eb, 1);
  std::vector<Part> parts;
  decode_plan(code.data(), static_cast<int64_t>(code.size()), sizes, &parts);
  double work = 0;
  for (const Part& p : parts)
    work += static_cast<double>(p.G) * static_cast<double>(p.M) * static_cast<double>(p.N) *
            static_cast<double>(std::max<int64_t>(p.K, 1));
  if (work > kMostWork) return 0;
  ++plans_run;
  run(&in, parts, sizes, disjoint);
  return 0;
}
