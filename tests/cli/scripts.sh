# The scripts that try a model, as part of run.sh.
name="a model through the whole program"
picture=$(find "$source/models/glyphs/sample" -name '*.png' | sort | head -n 1)
ESPALIER=$program PATTERNS=2:4 sh "$source/tools/try_model.sh" "$source/models/glyphs" tried images \
    "$source/models/glyphs/sample" "$picture" >out 2>err
code=$?
if [ "$code" = 0 ]; then ok; else bad "exit code $code, expected 0"; fi
for line in 'checksums verified' "$picture" '^top-1 ' 'same top label'; do
    if grep -q -e "$line" out; then ok; else bad "no line like '$line'"; fi
done
sh "$source/tools/try_model.sh" >out 2>err
code=$?
if [ "$code" = 2 ] && grep -q Usage err; then ok; else bad "exit code $code, expected 2 and the usage"; fi

# A program that does nothing and finds one folder damaged: the demo ends there, with its status.
cat >stub <<'END'
#!/bin/sh
case "$*" in
"verify demo/64-2-8 --strict")
    echo "stub: damaged" >&2
    exit 3
    ;;
verify*) echo "1 checksums verified" ;;
esac
END
chmod +x stub
mkdir demo
name="the demo ends where a folder does not verify"
ESPALIER_DEMO_FOLDER=demo sh "$source/tools/demo.sh" ./stub >out 2>err
code=$?
if [ "$code" = 3 ]; then ok; else bad "exit code $code, expected 3"; fi
out_has '^64-2-5   1 checksums verified$'
out_lacks '^== the same prompt'
err_has 'damaged'
sed -i 's/^    exit 3$/    exit 0/' stub
name="the demo ends where verify says nothing"
ESPALIER_DEMO_FOLDER=demo sh "$source/tools/demo.sh" ./stub >out 2>err
code=$?
if [ "$code" = 1 ]; then ok; else bad "exit code $code, expected 1"; fi
sed -i 's/^verify demo.*/nothing)/; s/^"verify demo.*/nothing)/' stub
name="the demo goes to its end"
ESPALIER_DEMO_FOLDER=demo sh "$source/tools/demo.sh" ./stub >out 2>err
code=$?
if [ "$code" = 0 ]; then ok; else bad "exit code $code, expected 0"; fi
out_has '^128-2-8  1 checksums verified$'
out_has '^Took [0-9]+ s after the build'

# Two devices: the processor with inputs rounded to bf16 and without, then with a program that lies of the first.
agree() {
    TOKENS=1100 sh "$source/tools/agree.sh" "$@" cpu/bf16 cpu/f32 >out 2>err
    code=$?
}
name="two devices that agree"
PATTERNS=2:4 TYPES=f16 agree "$program"
if [ "$code" = 0 ]; then ok; else bad "exit code $code, expected 0"; fi
for line in 'prose/f16/2:4, perplexity: [0-9.]+ in bf16 and [0-9.]+ in f32, ' 'glyphs/f16/2:4, entropy' \
    'glyphs/f16/2:4, scores: .*, 23[0-9] of 235 images the same label' 'tiny decoder, perplexity' \
    'tiny encoder, vectors: 256 numbers' 'tiny image encoder, embedding: 1024 numbers'; do
    out_has "^ok   $line"
done
out_has '^ok   prose/f16/2:4, a text of 300 tokens(: 1 of 1 the same|, number 1: .* nats likelier)'
out_has '^agree: [0-9]+ passed, 0 failed, 0 skipped$'
cat >liar <<END
#!/bin/sh
case "\$*" in
*"--compute bf16"*)
    "$program" "\$@" | sed 's/"nats":[1-9]/&0/g; s/"text":" /"text":" Zq zqx/g; s/"embedding":\[/&9,/
        s/"score":-/"score":/g; s/"cross_entropy":/&1/'
    ;;
*) exec "$program" "\$@" ;;
esac
END
chmod +x liar
name="two devices that differ"
PATTERNS=dense TYPES=bf16 MODELS="prose glyphs" agree ./liar
if [ "$code" = 1 ]; then ok; else bad "exit code $code, expected 1"; fi
for line in 'perplexity: ' 'four texts together, number 4: .* nats likelier' 'a text of 300 tokens, number 1: '; do
    out_has "^FAIL prose/bf16/dense, $line"
done
out_has '^     prose/bf16/dense, a text of 300 tokens: number 1 differs from its character [0-9]+ on: "Zq zqx'
out_has '^FAIL glyphs/bf16/dense, entropy'
out_has '^FAIL glyphs/bf16/dense, scores'
out_has '^agree: 0 passed, [0-9]+ failed, 0 skipped$'
name="two devices of which one is not there"
MODELS=prose PATTERNS=dense TYPES=bf16 sh "$source/tools/agree.sh" "$program" nowhere cpu/f32 >out 2>err
code=$?
if [ "$code" = 1 ]; then ok; else bad "exit code $code, expected 1"; fi
out_has '^FAIL prose/bf16/dense, perplexity: on nowhere: espalier: error: .*\[device.unknown\]$'
# A program with a GPU that can be used, or not; it measures nothing.
cat >stub <<'END'
#!/bin/sh
case "$*" in
"devices --json") cat devices.json ;;
bench*"--device cuda:0") . ./on-gpu ;;
bench*) echo "rows of the CPU" ;;
verify*) echo "1 checksums verified" ;;
esac
END
# demo_on CODE DEVICE: the demo, where the list of devices ends with that one.
demo_on() {
    expected_code=$1
    printf '{"schema":"espalier.devices","version":1,"devices":[%s,%s]}\n' \
        '{"name":"cpu","description":"a processor","usable":true,"why_not":null}' "$2" >devices.json
    ESPALIER_DEMO_FOLDER=demo sh "$source/tools/demo.sh" ./stub >out 2>err
    code=$?
    if [ "$code" = "$expected_code" ]; then ok; else bad "exit code $code, expected $expected_code"; fi
    out_has '^rows of the CPU$'
    out_has '^128-2-8  1 checksums verified$'
    out_has '^Took [0-9]+ s after the build'
}
usable='{"name":"cuda:0","description":"a GPU","usable":true,"why_not":null}'
name="the demo on a GPU"
echo 'echo "rows of the GPU: $*"' >on-gpu
demo_on 0 "$usable"
out_has '^rows of the GPU: bench models/prose --patterns 2:4,64:2:5,64:2:8,128:2:8 --text .*--device cuda:0$'
out_lacks 'GPU: (not run|failed)'
name="the demo where the GPU fails"
echo 'echo "stub: no room" >&2; exit 6' >on-gpu
demo_on 6 "$usable"
err_has '^stub: no room$'
out_has '^GPU: failed with exit code 6$'
name="the demo where the GPU cannot be used"
demo_on 0 '{"name":"cuda:0","description":"old","usable":false,"why_not":"it is too old"}'
out_has '^GPU: not run: it is too old$'
name="the demo without a GPU"
demo_on 0 '{"name":"cuda","description":"GPU","usable":false,"why_not":"there is no NVIDIA driver"}'
out_has '^GPU: not run: there is no NVIDIA driver$'
name="the demo of a program that knows no GPU"
demo_on 0 '{"name":"ref","description":"reference","usable":true,"why_not":null}'
out_has '^GPU: not run: no GPU that can be used$'
quiet_err
