// A pretend GPU for tests without one. Its memory is host memory and its kernels are the CPU's, but its tensors are of
// another device (torch's PrivateUse1), and mixing them with tensors of the CPU fails as it fails on CUDA. Whatever a
// GPU would have to be asked for is counted: launches of kernels, waits for them, copies to it and back.
//
// What it cannot show: CUDA's rounding, cuDNN's limits, time, memory of a real GPU, and races between copies and work.
#include <ATen/ATen.h>
#include <ATen/EmptyTensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/Resize.h>
#include <ATen/native/TensorShape.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/view_native.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/resize_native.h>
#include <ATen/ops/set_native.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/core/impl/alloc_cpu.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/library.h>
#include <atomic>
#include <map>
#include <mutex>

namespace {
using at::Tensor;
constexpr auto DEV = c10::DeviceType::PrivateUse1;

std::mutex mu;
std::map<std::string, int64_t> launches;
std::atomic<int64_t> live{0}, peak{0};
std::atomic<bool> strict{true};
PyObject* listener = nullptr;  // callable(kind, op, bytes)

void tell(const char* kind, const std::string& op, int64_t bytes) {
  if (!listener || !Py_IsInitialized()) return;
  pybind11::gil_scoped_acquire gil;
  PyObject *type, *value, *trace;
  PyErr_Fetch(&type, &value, &trace);
  PyObject* r = PyObject_CallFunction(listener, "ssL", kind, op.c_str(), (long long)bytes);
  if (r) Py_DECREF(r); else PyErr_Print();
  PyErr_Restore(type, value, trace);
}
void launched(const std::string& op) { std::lock_guard<std::mutex> l(mu); launches[op]++; }

struct Head { size_t n; };
struct Memory final : c10::Allocator {
  static void drop(void* ctx) {
    auto* h = static_cast<Head*>(ctx);
    live -= (int64_t)h->n;
    c10::free_cpu(h);
  }
  c10::DataPtr allocate(size_t n) override {
    auto* h = static_cast<Head*>(c10::alloc_cpu(n + 64));
    h->n = n;
    live += (int64_t)n;
    int64_t now = live.load(), p = peak.load();
    while (now > p && !peak.compare_exchange_weak(p, now)) {}
    return {reinterpret_cast<char*>(h) + 64, h, &drop, c10::Device(DEV, 0)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return nullptr; }
  void copy_data(void* d, const void* s, std::size_t n) const override { default_copy_data(d, s, n); }
} memory;

// Host memory from which a GPU copies by itself. Ordinary memory here; which it is, is remembered.
std::mutex pins;
std::map<const char*, size_t> pinned;  // where such memory begins, and its bytes
bool is_pinned(const void* p) {
  std::lock_guard<std::mutex> l(pins);
  auto it = pinned.upper_bound(static_cast<const char*>(p));
  if (it == pinned.begin()) return false;
  --it;
  return static_cast<const char*>(p) < it->first + it->second;
}
struct Pinned final : c10::Allocator {
  static void drop(void* p) {
    { std::lock_guard<std::mutex> l(pins); pinned.erase(static_cast<const char*>(p)); }
    c10::free_cpu(p);
  }
  c10::DataPtr allocate(size_t n) override {
    void* p = c10::alloc_cpu(n ? n : 1);
    { std::lock_guard<std::mutex> l(pins); pinned[static_cast<const char*>(p)] = n ? n : 1; }
    return {p, p, &drop, c10::Device(at::kCPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &drop; }
  void copy_data(void* d, const void* s, std::size_t n) const override { default_copy_data(d, s, n); }
} pinned_memory;

struct Guard final : c10::impl::NoOpDeviceGuardImpl<DEV> {
  c10::Device exchangeDevice(c10::Device) const override { return c10::Device(DEV, 0); }
  c10::Device getDevice() const override { return c10::Device(DEV, 0); }
  c10::Stream getStream(c10::Device) const noexcept override { return c10::Stream(c10::Stream::DEFAULT, c10::Device(DEV, 0)); }
  c10::Stream getNewStream(c10::Device, int = 0) const override { return c10::Stream(c10::Stream::DEFAULT, c10::Device(DEV, 0)); }
  c10::Stream exchangeStream(c10::Stream) const noexcept override { return c10::Stream(c10::Stream::DEFAULT, c10::Device(DEV, 0)); }
};

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  void setCurrentDevice(c10::DeviceIndex) const override {}
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex) const override { return 0; }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex) const override { return 0; }
  c10::Allocator* getPinnedMemoryAllocator() const override { return &pinned_memory; }
  bool isPinnedPtr(const void* p) const override { return is_pinned(p); }
  void resizePrivateUse1Bytes(const c10::Storage& s, size_t n) const override {
    at::native::resize_bytes_cpu(s.unsafeGetStorageImpl(), n);
  }
};

bool on(const Tensor& t) { return t.defined() && t.device().type() == DEV; }

Tensor host(const Tensor& t) {  // the same memory as a CPU tensor
  if (!on(t)) return t;
  char* base = static_cast<char*>(t.storage().mutable_data());
  void* at = base ? base + t.storage_offset() * t.itemsize() : nullptr;
  Tensor keep = t;
  auto o = at::TensorOptions().dtype(t.dtype()).device(at::kCPU);
  if (t.numel() == 0 || !at) return at::empty_strided(t.sizes(), t.strides(), o);
  return at::from_blob(at, t.sizes(), t.strides(), [keep](void*) {}, o);
}

Tensor device_like(const Tensor& c) {  // a copy on the device, same strides where they are dense
  if (!c.defined()) return c;
  auto s = c.is_non_overlapping_and_dense() ? c.strides().vec() : c.contiguous().strides().vec();
  Tensor out = at::detail::empty_strided_generic(c.sizes(), s, &memory, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1), c.scalar_type());
  host(out).copy_(c);
  return out;
}

// ---- factories, views, copies
Tensor empty_mf(at::IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>, std::optional<at::Device>,
                std::optional<bool>, std::optional<at::MemoryFormat> mf) {
  return at::detail::empty_generic(size, &memory, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1), c10::dtype_or_default(dtype), mf);
}
Tensor empty_st(at::IntArrayRef size, at::IntArrayRef stride, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
                std::optional<at::Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(size, stride, &memory, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1), c10::dtype_or_default(dtype));
}
Tensor as_st(const Tensor& s, at::IntArrayRef size, at::IntArrayRef stride, std::optional<int64_t> off) {
  return at::native::as_strided_tensorimpl(s, size, stride, off);
}
Tensor view_(const Tensor& s, at::IntArrayRef size) { return at::native::view(s, size); }
Tensor reshape_alias(const Tensor& s, at::IntArrayRef size, at::IntArrayRef stride) { return at::native::_reshape_alias(s, size, stride); }
Tensor unfold_(const Tensor& s, int64_t d, int64_t size, int64_t step) { return at::native::unfold(s, d, size, step); }
const Tensor& resize(const Tensor& s, at::IntArrayRef size, std::optional<at::MemoryFormat> mf) {
  at::native::resize_impl_cpu_(s.unsafeGetTensorImpl(), size, std::nullopt);
  if (mf) s.unsafeGetTensorImpl()->empty_tensor_restride(*mf);
  return s;
}
Tensor& set_storage(Tensor& r, at::Storage src, int64_t off, at::IntArrayRef size, at::IntArrayRef stride) {
  return at::native::set_storage_cpu_(r, src, off, size, stride);
}
// A copy to the device for which nobody waits comes from pinned memory and says so ("h2d"); every other one, and every
// copy back, stops the program until it is done ("h2d-wait", "d2h").
Tensor copy_from(const Tensor& src, const Tensor& dst, bool non_blocking) {
  bool free = !on(src) && non_blocking && is_pinned(src.storage().data());
  const char* way = on(src) ? (on(dst) ? "copy" : "d2h") : (free ? "h2d" : "h2d-wait");
  launched(std::string("aten::copy_(") + way + ")");
  if (way[0] != 'c') tell(way, "aten::copy_", src.numel() * src.itemsize());
  host(dst).copy_(host(src));
  return dst;
}
at::Scalar item(const Tensor& s) {
  launched("aten::_local_scalar_dense");
  tell("sync", "aten::_local_scalar_dense", s.itemsize());
  return at::_local_scalar_dense(host(s));
}
Tensor conv(const Tensor& x, const Tensor& w, const std::optional<Tensor>& b, at::IntArrayRef st, at::IntArrayRef p, at::IntArrayRef d,
            bool tr, at::IntArrayRef op, int64_t g) {
  TORCH_CHECK(on(x) && on(w) && (!b || !b->defined() || on(*b)), "Expected all tensors to be on the same device (convolution)");
  launched("aten::convolution");
  return device_like(at::convolution(host(x), host(w), b ? std::optional<Tensor>(host(*b)) : b, st, p, d, tr, op, g));
}
std::tuple<Tensor, Tensor, Tensor> conv_back(const Tensor& g, const Tensor& x, const Tensor& w, at::IntArrayRef st, at::IntArrayRef p,
    at::IntArrayRef d, bool tr, at::IntArrayRef op, int64_t groups, std::array<bool, 3> mask) {
  launched("aten::convolution_backward");
  std::vector<int64_t> bias{w.size(0)};
  auto [a, b, c] = at::convolution_backward(host(g), host(x), host(w), at::OptionalIntArrayRef(bias), st, p, d, tr, op, groups, mask);
  return {device_like(a), device_like(b), device_like(c)};
}

// ---- everything else: on the CPU, in the same memory
bool takes_cpu_index(const std::string& n) { return n == "aten::index" || n == "aten::index_put_" || n == "aten::_index_put_impl_" || n == "aten::_unsafe_index" || n == "aten::_unsafe_index_put" || n == "aten::index_put"; }
bool waits(const std::string& n) {
  static const char* names[] = {"aten::nonzero", "aten::masked_select", "aten::equal", "aten::_unique2", "aten::repeat_interleave", "aten::bincount",
    "aten::linalg_qr", "aten::linalg_svd", "aten::linalg_eigh", "aten::_linalg_svd", "aten::_linalg_eigh", "aten::linalg_inv_ex", "aten::is_nonzero"};
  for (auto* m : names) if (n == m) return true;
  return false;
}
void fallback(const c10::OperatorHandle& op, c10::DispatchKeySet, torch::jit::Stack* stack) {
  const auto& schema = op.schema();
  const auto& name = schema.name();
  const size_t n = schema.arguments().size();
  const auto begin = stack->size() - n;
  std::vector<at::IValue> original(stack->begin() + begin, stack->end());
  bool lenient = op.hasTag(at::Tag::pointwise) || name == "aten::where" || name == "aten::fill_" || name == "aten::masked_fill_" ||
      name == "aten::masked_fill" || name == "aten::lerp" || name == "aten::clamp";
  bool any_dev = false;
  std::string bad, slow;
  auto look = [&](const Tensor& t, size_t i) {
    if (!t.defined()) return;
    if (on(t)) { any_dev = true; return; }
    if (t.device().type() != at::kCPU) return;
    if (t.dim() == 0 && lenient) return;
    std::ostringstream s; s << "argument " << schema.arguments()[i].name() << " is cpu " << t.dtype() << t.sizes();
    if (takes_cpu_index(name) && i == 1) slow = s.str(); else bad = s.str();
  };
  bool mask_index = false;
  for (size_t i = 0; i < n; ++i) {
    auto& v = (*stack)[begin + i];
    if (v.isTensor()) { auto t = v.toTensor(); look(t, i); v = host(t); }
    else if (v.isTensorList()) {
      auto l = v.toTensorVector(); c10::List<Tensor> h;
      for (auto& t : l) { look(t, i); h.push_back(host(t)); }
      v = h;
    } else if (v.isOptionalTensorList()) {
      c10::List<std::optional<Tensor>> h;
      for (std::optional<Tensor> t : v.toOptionalTensorList()) {
        if (t && t->defined()) { look(*t, i); if (t->scalar_type() == at::kBool || t->scalar_type() == at::kByte) mask_index = true; h.push_back(host(*t)); }
        else h.push_back(std::nullopt);
      }
      v = h;
    } else if (v.isDevice()) { v = c10::Device(at::kCPU); }
    else if (v.isGenerator()) {
      TORCH_CHECK(false, "Expected a 'cuda' device type for generator but found 'cpu' (", name, ")");
    }
  }
  if (any_dev && !bad.empty()) {
    tell("mixed", name + ": " + bad, 0);
    if (strict) TORCH_CHECK(false, "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! (", name, ": ", bad, ")");
  }
  launched(name);
  if (!slow.empty()) tell("cpu-index", name + ": " + slow, 0);
  if (mask_index) tell("sync", name + " with a mask", 0);
  if (waits(name)) tell("sync", name, 0);
  op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack);
  const auto& rets = schema.returns();
  const auto rb = stack->size() - rets.size();
  for (size_t i = 0; i < rets.size(); ++i) {
    auto& v = (*stack)[rb + i];
    const auto* alias = rets[i].alias_info();
    if (alias) {
      bool found = false;
      for (size_t k = 0; k < n && !found; ++k) {
        const auto* a = schema.arguments()[k].alias_info();
        if (a && *a == *alias) {
          TORCH_CHECK(alias->isWrite(), "pretend device: view op ", name, " is not registered");
          if (original[k].isTensor()) { // out= may have been resized
            auto o = original[k].toTensor(); auto c = v.toTensor();
            if (on(o) && o.sizes() != c.sizes()) { o.resize_(c.sizes()); host(o).copy_(c); }
          }
          v = original[k]; found = true;
        }
      }
      TORCH_CHECK(found, "pretend device: alias of ", name);
    } else if (v.isTensor()) { if (v.toTensor().defined()) v = device_like(v.toTensor()); }
    else if (v.isTensorList()) { c10::List<Tensor> o; for (auto& t : v.toTensorVector()) o.push_back(device_like(t)); v = o; }
  }
}

}  // namespace

C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard)
TORCH_LIBRARY_IMPL(_, PrivateUse1, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>()); }
TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", empty_mf);
  m.impl("empty_strided", empty_st);
  m.impl("as_strided", as_st);
  m.impl("view", view_);
  m.impl("_reshape_alias", reshape_alias);
  m.impl("unfold", unfold_);
  m.impl("resize_", resize);
  m.impl("set_.source_Storage_storage_offset", set_storage);
  m.impl("_copy_from", copy_from);
  m.impl("_local_scalar_dense", item);
  m.impl("convolution_overrideable", conv);
  m.impl("convolution_backward_overrideable", conv_back);
}

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.def("start", [] {
    c10::SetAllocator(DEV, &memory);
    static Hooks hooks;
    if (!at::isPrivateUse1HooksRegistered()) at::RegisterPrivateUse1HooksInterface(&hooks);
  });
  m.def("listen", [](pybind11::object f) { Py_XDECREF(listener); listener = f.is_none() ? nullptr : f.inc_ref().ptr(); });
  m.def("launches", [] { std::lock_guard<std::mutex> l(mu); return launches; });
  m.def("reset", [] { std::lock_guard<std::mutex> l(mu); launches.clear(); peak = live.load(); });
  m.def("live", [] { return live.load(); });
  m.def("peak", [] { return peak.load(); });
  m.def("strict", [](bool s) { strict = s; });
}
