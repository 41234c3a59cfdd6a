// The XLA-FFI handler of the host, `bloodcell_policy`.
#include "call.h"
#include "workers.h"

namespace ffi = xla::ffi;

namespace {

ffi::Error apply(ffi::ThreadPool pool, ffi::Span<const int64_t> words, ffi::AnyBuffer images,
                 ffi::RemainingArgs fields, ffi::Result<ffi::AnyBuffer> out) {
  Program program;
  int type = 0;
  if (ffi::Error error = bloodcell::read_call(words, images, fields, out, &program, &type); error.failure()) {
    return error;
  }
  const int threads = static_cast<int>(pool.num_threads());
  const std::string wrong = bloodcell::run(
      program, static_cast<const u8*>(images.untyped_data()), out->untyped_data(), type, threads < 1 ? 1 : threads,
      [&pool](std::function<void()> task) { pool.Schedule(std::move(task)); });
  return wrong.empty() ? ffi::Error::Success() : ffi::Error(ffi::ErrorCode::kResourceExhausted, wrong);
}

XLA_FFI_DEFINE_HANDLER(handler, apply,
                       ffi::Ffi::Bind()
                           .Ctx<ffi::ThreadPool>()
                           .Attr<ffi::Span<const int64_t>>("steps")
                           .Arg<ffi::AnyBuffer>()
                           .RemainingArgs()
                           .Ret<ffi::AnyBuffer>());
XLA_FFI_REGISTER_HANDLER(xla::ffi::GetXlaFfiApi(), "bloodcell_policy", "Host", handler);

}  // namespace
