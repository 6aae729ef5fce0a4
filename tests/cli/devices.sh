# GPUs that cannot be used, as part of run.sh: what is said of them, and that the CPU goes on.
t "on the CPU" 0 run plain --prompt a -n 4 -q; cp out on-the-cpu
# no_gpu WHAT CODE REASON: with the driver that LD_LIBRARY_PATH has put in place.
no_gpu() {
    for device in cuda cuda:0 cuda:3; do
        t "$1: --device $device" 4 run plain --prompt a -n 4 --device $device; quiet_out; one_line_err
        err_has "^espalier: error: device '$device' \(GPU\) cannot be used: $3 \[$2\]$"
    done
    t "$1, JSON" 4 eval plain --text short.txt --device cuda:0 --json
    json "\$j->{code} eq '$2' && \$j->{exit_code} == 4 && \$j->{status} eq 'unsupported'"
    t "$1: devices" 0 devices; out_has "^cpu .* yes "; out_has "^cuda .* $3  GPU$"; quiet_err
    t "$1: the CPU" 0 run plain --prompt a -n 4 -q --device cpu
    if cmp -s out on-the-cpu; then ok; else bad "the CPU says something else"; fi
    t "$1: no name is known" 2 run plain --prompt a --device gpu; err_has 'this machine has ref, cpu \[device.unknown\]$'
}

library_path=${LD_LIBRARY_PATH-}
if "$program" devices | grep -q 'built without CUDA'; then
    no_gpu "built without CUDA" device.no_cuda 'this espalier was built without CUDA'
    skipped=$((skipped + 1))
    echo "not run cli: drivers that cannot be used: built without CUDA"
else
    mkdir no-driver && echo "no library" >no-driver/libcuda.so.1
    export FAKE_CUDA LD_LIBRARY_PATH
    LD_LIBRARY_PATH=$work/no-driver${library_path:+:$library_path}
    no_gpu "no driver" device.no_driver 'there is no NVIDIA driver: libcuda.so.1 cannot be opened'
    LD_LIBRARY_PATH=$build/tests/fake_driver${library_path:+:$library_path}
    FAKE_CUDA=old
    no_gpu "old driver" device.old_driver 'the NVIDIA driver is too old: it is for CUDA 10\.2, this build for CUDA [0-9]+\.[0-9]+'
    FAKE_CUDA=empty
    no_gpu "no GPU" device.no_gpu 'the NVIDIA driver shows no GPU'
    FAKE_CUDA=broken
    no_gpu "broken driver" device.unusable 'unknown error'
    unset FAKE_CUDA
    LD_LIBRARY_PATH=$library_path
    [ -n "$library_path" ] || unset LD_LIBRARY_PATH
fi
