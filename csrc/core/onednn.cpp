// onednn.cpp: see onednn.h.
#include "onednn.h"

#include <omp.h>

#include <cstring>
#include <dnnl.hpp>
#include <memory>
#include <string_view>
#include <type_traits>
#include <unordered_map>

namespace fx {

using dnnl::memory;
using Tag = memory::format_tag;

namespace {

constexpr size_t kMaxPlans = 1024;  // far above the shapes of a model; the bound is for servers that see images of any size

memory::data_type type(int64_t dtype) { return dtype == FX_DTYPE_F32 ? memory::data_type::f32 : memory::data_type::bf16; }

int64_t round64(int64_t bytes) { return (bytes + 63) / 64 * 64; }

// The number of OpenMP threads of the calling thread's regions, within a scope.
class Threads {
 public:
  explicit Threads(int n) : before_(omp_get_max_threads()) {
    if (n != before_) omp_set_num_threads(n);
    changed_ = n != before_;
  }
  ~Threads() {
    if (changed_) omp_set_num_threads(before_);
  }
  Threads(const Threads&) = delete;
  Threads& operator=(const Threads&) = delete;

 private:
  int before_;
  bool changed_;
};

// One argument of the primitive: the caller's layout, and the primitive's own where they differ.
struct Operand {
  int id = 0;  // DNNL_ARG_*, 0: absent
  bool output = false;
  memory::desc outer, inner;
  dnnl::reorder reorder;  // outer -> inner, or back for an output
  int64_t offset = -1;    // of the inner copy in the work memory, -1: none
  bool packed = false;    // the caller gives the inner copy
};

}  // namespace

struct Plan {
  dnnl::engine engine;
  dnnl::primitive primitive;
  Operand operands[4];
  memory::desc scratch;
  int64_t scratch_offset = 0;
  int64_t bytes = 0;
  uint64_t used = 0;

  void set(int i, int id, bool output, const memory::desc& outer, const memory::desc& inner, bool packed = false) {
    Operand& o = operands[i];
    o.id = id;
    o.output = output;
    o.outer = outer;
    o.inner = inner;
    o.packed = packed;
    if (outer == inner) return;
    const memory::desc &from = output ? inner : outer, &to = output ? outer : inner;
    o.reorder = dnnl::reorder(dnnl::reorder::primitive_desc(engine, from, engine, to));
    if (packed) return;
    o.offset = bytes;
    bytes += round64(int64_t(inner.get_size()));
  }

  template <class Desc>
  void finish(const Desc& desc) {
    scratch = desc.scratchpad_desc();
    scratch_offset = bytes;
    bytes += round64(int64_t(scratch.get_size()));
  }

  void execute(void* const* pointers, char* work) const;
};

void Plan::execute(void* const* pointers, char* work) const {
  Threads scope(1);
  dnnl::stream stream(engine);
  memory outer[4], inner[4];
  std::unordered_map<int, memory> arguments;
  for (int i = 0; i < 4; i++) {
    const Operand& o = operands[i];
    if (!o.id) continue;
    outer[i] = memory(o.outer, engine, pointers[i]);
    if (o.offset >= 0) inner[i] = memory(o.inner, engine, work + o.offset);
    else inner[i] = o.packed ? memory(o.inner, engine, pointers[i]) : outer[i];
    if (o.offset >= 0 && !o.output) o.reorder.execute(stream, outer[i], inner[i]);
    arguments.emplace(o.id, inner[i]);
  }
  if (scratch.get_size() > 0) arguments.emplace(DNNL_ARG_SCRATCHPAD, memory(scratch, engine, work + scratch_offset));
  primitive.execute(stream, arguments);
  for (int i = 0; i < 4; i++) {
    const Operand& o = operands[i];
    if (o.id && o.output && o.offset >= 0) o.reorder.execute(stream, inner[i], outer[i]);
  }
}

namespace {

template <class Spec>
struct Hash {
  size_t operator()(const Spec& spec) const {
    static_assert(std::has_unique_object_representations_v<Spec>, "the bytes are the key: no padding");
    return std::hash<std::string_view>()(std::string_view(reinterpret_cast<const char*>(&spec), sizeof spec));
  }
};
template <class Spec>
struct Equal {
  bool operator()(const Spec& a, const Spec& b) const { return memcmp(&a, &b, sizeof a) == 0; }
};
template <class Spec>
using Plans = std::unordered_map<Spec, std::unique_ptr<Plan>, Hash<Spec>, Equal<Spec>>;

// A plan found or made; the one not used for longest goes when there are too many. An op holds a handful at a time, so none of its own
// goes.
template <class Spec, class F>
const Plan* find(Plans<Spec>& plans, uint64_t& clock, const Spec& spec, const F& make) {
  auto it = plans.find(spec);
  if (it == plans.end()) {
    if (plans.size() >= kMaxPlans) {
      auto oldest = plans.begin();
      for (auto i = plans.begin(); i != plans.end(); ++i)
        if (i->second->used < oldest->second->used) oldest = i;
      plans.erase(oldest);
    }
    it = plans.emplace(spec, make()).first;
  }
  it->second->used = ++clock;
  return it->second.get();
}

dnnl::primitive_attr attributes() {
  dnnl::primitive_attr attr;
  attr.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  return attr;
}

std::unique_ptr<Plan> make_matmul(const dnnl::engine& engine, const MatmulSpec& s) {
  Threads scope(1);
  memory::data_type t = type(s.dtype);
  memory::desc a({s.m, s.k}, t, memory::dims{s.a_row, s.a_col}), b({s.k, s.n}, t, memory::dims{s.b_row, s.b_col});
  memory::desc c({s.m, s.n}, memory::data_type::f32, memory::dims{s.c_row, 1}), any = memory::desc({s.k, s.n}, t, Tag::any);
#if DNNL_VERSION_MAJOR >= 3
  dnnl::matmul::primitive_desc desc(engine, a, s.pack ? any : b, c, attributes());
#else
  dnnl::matmul::primitive_desc desc(dnnl::matmul::desc(a, s.pack ? any : b, c), attributes(), engine);
#endif
  auto plan = std::make_unique<Plan>();
  plan->engine = engine;
  plan->primitive = dnnl::matmul(desc);
  plan->set(0, DNNL_ARG_SRC, false, a, a);
  plan->set(1, DNNL_ARG_WEIGHTS, false, b, desc.weights_desc());
  plan->set(3, DNNL_ARG_DST, true, c, c);
  plan->finish(desc);
  return plan;
}

// The descriptors of one convolution, with the activations in NHWC or in the layout oneDNN likes best.
struct Conv {
  const dnnl::engine& engine;
  const ConvSpec& s;
  memory::desc x, w, bias, y;
  dnnl::primitive_attr attr;

  Conv(const dnnl::engine& e, const ConvSpec& spec, bool nhwc) : engine(e), s(spec), attr(attributes()) {
    memory::data_type t = type(s.dtype);
    x = memory::desc({s.batch, s.in_c, s.in_y, s.in_x}, t, nhwc ? Tag::nhwc : Tag::any);
    w = memory::desc({s.out_c, s.in_c, s.ky, s.kx}, s.pass == kConvBackwardWeights ? memory::data_type::f32 : t, Tag::any);
    y = memory::desc({s.batch, s.out_c, s.out_y, s.out_x}, t, nhwc ? Tag::nhwc : Tag::any);
    if (s.bias) bias = memory::desc({s.out_c}, t, Tag::x);
  }

  memory::dims strides() const { return {s.stride, s.stride}; }
  memory::dims before() const { return {s.pad_top, s.pad_left}; }
  memory::dims after() const { return {s.pad_bottom, s.pad_right}; }

  // The backward passes need the forward one as a hint.
  dnnl::convolution_forward::primitive_desc forward(const memory::desc& weights, const dnnl::primitive_attr& a) const {
    auto kind = s.pass == kConvForward ? dnnl::prop_kind::forward_inference : dnnl::prop_kind::forward_training;
    auto direct = dnnl::algorithm::convolution_direct;
#if DNNL_VERSION_MAJOR >= 3
    if (s.bias) return {engine, kind, direct, x, weights, bias, y, strides(), before(), after(), a};
    return {engine, kind, direct, x, weights, y, strides(), before(), after(), a};
#else
    using Desc = dnnl::convolution_forward::desc;
    return {s.bias ? Desc(kind, direct, x, weights, bias, y, strides(), before(), after())
                   : Desc(kind, direct, x, weights, y, strides(), before(), after()),
            a, engine};
#endif
  }
  dnnl::convolution_forward::primitive_desc hint() const {
    return forward(memory::desc({s.out_c, s.in_c, s.ky, s.kx}, type(s.dtype), Tag::any), {});
  }

  dnnl::convolution_backward_data::primitive_desc backward_data() const {
    auto direct = dnnl::algorithm::convolution_direct;
#if DNNL_VERSION_MAJOR >= 3
    return {engine, direct, x, w, y, strides(), before(), after(), hint(), attr};
#else
    return {dnnl::convolution_backward_data::desc(direct, x, w, y, strides(), before(), after()), attr, engine, hint()};
#endif
  }

  dnnl::convolution_backward_weights::primitive_desc backward_weights() const {
    auto direct = dnnl::algorithm::convolution_direct;
#if DNNL_VERSION_MAJOR >= 3
    return {engine, direct, x, w, y, strides(), before(), after(), hint(), attr};
#else
    return {dnnl::convolution_backward_weights::desc(direct, x, w, y, strides(), before(), after()), attr, engine, hint()};
#endif
  }
};

// make(conv) gives oneDNN's descriptor. NHWC first; its plain reference code is two orders slower than anything else, so where that is what
// NHWC gets, the activations are copied to the layout of a better one.
template <class F>
auto choose(const dnnl::engine& engine, const ConvSpec& s, const F& make) {
  auto desc = make(Conv(engine, s, true));
  if (!strstr(desc.impl_info_str(), "ref")) return desc;
  return make(Conv(engine, s, false));
}

std::unique_ptr<Plan> make_conv(const dnnl::engine& engine, const ConvSpec& s) {
  Threads scope(1);
  memory::data_type t = type(s.dtype);
  memory::desc x({s.batch, s.in_c, s.in_y, s.in_x}, t, Tag::nhwc), y({s.batch, s.out_c, s.out_y, s.out_x}, t, Tag::nhwc);
  memory::desc w({s.out_c, s.in_c, s.ky, s.kx}, s.pass == kConvBackwardWeights ? memory::data_type::f32 : t, Tag::oihw);
  auto plan = std::make_unique<Plan>();
  plan->engine = engine;
  if (s.pass == kConvForward) {
    auto desc = choose(engine, s, [](const Conv& c) { return c.forward(c.w, c.attr); });
    plan->primitive = dnnl::convolution_forward(desc);
    plan->set(0, DNNL_ARG_SRC, false, x, desc.src_desc());
    plan->set(1, DNNL_ARG_WEIGHTS, false, w, desc.weights_desc(), true);
    if (s.bias) plan->set(2, DNNL_ARG_BIAS, false, desc.bias_desc(), desc.bias_desc());
    plan->set(3, DNNL_ARG_DST, true, y, desc.dst_desc());
    plan->finish(desc);
  } else if (s.pass == kConvBackwardData) {
    auto desc = choose(engine, s, [](const Conv& c) { return c.backward_data(); });
    plan->primitive = dnnl::convolution_backward_data(desc);
    plan->set(0, DNNL_ARG_DIFF_SRC, true, x, desc.diff_src_desc());
    plan->set(1, DNNL_ARG_WEIGHTS, false, w, desc.weights_desc(), true);
    plan->set(3, DNNL_ARG_DIFF_DST, false, y, desc.diff_dst_desc());
    plan->finish(desc);
  } else {
    auto desc = choose(engine, s, [](const Conv& c) { return c.backward_weights(); });
    plan->primitive = dnnl::convolution_backward_weights(desc);
    plan->set(0, DNNL_ARG_SRC, false, x, desc.src_desc());
    plan->set(1, DNNL_ARG_DIFF_WEIGHTS, true, w, desc.diff_weights_desc());
    plan->set(3, DNNL_ARG_DIFF_DST, false, y, desc.diff_dst_desc());
    plan->finish(desc);
  }
  return plan;
}

}  // namespace

struct OnednnCache {
  dnnl::engine engine{dnnl::engine::kind::cpu, 0};
  Plans<MatmulSpec> matmuls;
  Plans<ConvSpec> convs;
  uint64_t clock = 0;
};

OnednnCache* onednn_open() { return new OnednnCache; }
void onednn_close(OnednnCache* cache) { delete cache; }

const Plan* matmul_plan(fx_ctx* ctx, const MatmulSpec& spec) {
  OnednnCache* cache = onednn(ctx);
  return find(cache->matmuls, cache->clock, spec, [&] { return make_matmul(cache->engine, spec); });
}

const Plan* conv_plan(fx_ctx* ctx, const ConvSpec& spec) {
  OnednnCache* cache = onednn(ctx);
  return find(cache->convs, cache->clock, spec, [&] { return make_conv(cache->engine, spec); });
}

int64_t plan_bytes(const Plan* plan) { return plan->bytes; }

bool plan_run(const Plan* plan, void* a, void* b, void* bias, void* c, void* work) {
  try {
    void* pointers[4] = {a, b, bias, c};
    plan->execute(pointers, static_cast<char*>(work));
    return true;
  } catch (...) {
    return false;
  }
}

int64_t plan_pack_bytes(const Plan* plan) {
  const Operand& w = plan->operands[1];
  return w.outer == w.inner ? 0 : round64(int64_t(w.inner.get_size()));
}

bool plan_packs_alike(const Plan* a, const Plan* b) { return a->operands[1].inner == b->operands[1].inner; }

bool plan_pack(const Plan* plan, void* w, void* packed, int threads) {
  try {
    Threads scope(threads);
    const Operand& o = plan->operands[1];
    dnnl::stream stream(plan->engine);
    memory from(o.outer, plan->engine, w), to(o.inner, plan->engine, packed);
    o.reorder.execute(stream, from, to);
    return true;
  } catch (...) {
    return false;
  }
}

void onednn_limit(Tier tier) {
  // refused after first use; then the first choice stays
  if (tier == Tier::avx2) dnnl_set_max_cpu_isa(dnnl_cpu_isa_avx2);
  if (tier == Tier::generic) dnnl_set_max_cpu_isa(dnnl_cpu_isa_sse41);
}

void onednn_version(char* text, size_t capacity) {
  const dnnl_version_t* v = dnnl_version();
  snprintf(text, capacity, "oneDNN %d.%d.%d", v->major, v->minor, v->patch);
}

bool onednn_bf16() {
  int isa = int(dnnl::get_effective_cpu_isa()), needed = int(dnnl::cpu_isa::avx512_core);  // sets of bits
  return (isa & needed) == needed;
}

}  // namespace fx
