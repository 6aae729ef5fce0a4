# Models of images, as part of run.sh: the shipped classifier and a small encoder.
glyphs=$source/models/glyphs
images=$source/tests/golden/images
"$build/tests/make_tiny_model" sam sam || exit 1
cp "$glyphs/sample/A/00010.png" letter.png
printf '%s\tA\n%s\t10\n' letter.png "$glyphs/sample/A/00057.png" >index.tsv
printf 'letter.png\tA\tB\n' >bad-index.tsv
printf 'letter.png\tnobody\n' >unknown-label.tsv
printf 'letter.png\n' >no-label.tsv

t "run images" 0 run "$glyphs" letter.png "$images/rgb.jpg"
out_has '^letter.png$'; out_has '^  0\.[0-9]{4}  A$'; err_has '2 images in'
t "run images, quiet" 0 run "$glyphs" letter.png -q --top 2; quiet_err
if [ "$(wc -l <out)" = 3 ]; then ok; else bad "a line for the image and two labels were expected"; fi
t "run images, JSON" 0 run "$glyphs" letter.png "$images/grey_alpha.png" --json
json '@{$j->{images}} == 2 && @{$j->{images}[0]{top}} == 5 && $j->{images}[0]{top}[0]{label} eq "A"'
json '$j->{images}[0]{top}[0]{probability} > $j->{images}[0]{top}[1]{probability}'
json '$j->{device_bytes}{weights} == $j->{resident_bytes} && $j->{device_bytes}{activations} > 0'
t "run images on ref" 0 run "$glyphs" letter.png --device ref --compute f32 --json
json '$j->{device} eq "ref" && $j->{images}[0]{top}[0]{label} eq "A"'
t "run images, explained" 0 run "$glyphs" letter.png --explain; err_has '^chosen: matmul_'
t "run images, explained, JSON" 0 run "$glyphs" letter.png --explain --json; json '@{$j->{explain}} > 2'
t "eval images, explained" 0 eval "$glyphs" --images index.tsv --explain; out_has '^chosen: matmul_'
t "eval images, explained, JSON" 0 eval "$glyphs" --images index.tsv --explain --json
json '@{$j->{explain}} > 2 && @{$j->{explain}[0]{candidates}} > 0'
t "prune a classifier, calibrated" 0 prune "$glyphs" -p 2:4 -o gc --calibrate "$glyphs/sample" --method wanda -q
t "verify the classifier" 0 verify gc --strict -q
printf '%s\tA\n' "$images/truncated.png" >damaged.tsv
t "prune a classifier with a damaged image" 3 prune "$glyphs" -p 2:4 -o gd -q \
    --calibrate damaged.tsv --method wanda; err_has '\[image\.'
t "no image" 3 run "$glyphs" nothing.png; err_has '\[image.unreadable\]'; one_line_err
t "a truncated image" 3 run "$glyphs" "$images/truncated.png"; err_has '\[image.damaged\]'; quiet_out
t "a truncated photo, JSON" 3 run "$glyphs" letter.png "$images/truncated.jpg" --json
json '$j->{code} eq "image.damaged"'
t "an image that is too large" 3 run "$glyphs" "$images/wide.png"; err_has '\[image.too_large\]'
t "a CMYK photo" 4 run "$glyphs" "$images/cmyk.jpg"; err_has 'RGB.*\[image.unsupported_colours\]'
t "a GIF" 3 run "$glyphs" "$images/picture.gif"; err_has '\[image.unknown_format\]'
t "images for a decoder" 2 run plain letter.png; err_has '\[vision.no_images\]'
t "images for a text encoder" 2 run bert letter.png; err_has '\[vision.no_images\]'
t "a classifier gives no embeddings" 2 run "$glyphs" letter.png --out x.safetensors
err_has '\[usage.extra_option\]'

t "eval images" 0 eval "$glyphs" --images "$glyphs/sample"; same_accuracy=$(sed -n 's/^top-1 *//p' out)
out_has '^top-1 +0\.8[0-9]{3} '; out_has '^top-5 +0\.9'; quiet_err
t "eval images, one thread" 0 eval "$glyphs" --images "$glyphs/sample" --threads 1
if [ "$(sed -n 's/^top-1 *//p' out)" = "$same_accuracy" ]; then ok; else bad "threads change top-1"; fi
t "eval images of an index" 0 eval "$glyphs" --images index.tsv --json
json '$j->{images} == 2 && $j->{top1} == 1 && !defined $j->{baseline_top1}'
json '$j->{device_bytes}{weights} == $j->{resident_bytes} && $j->{device_bytes}{activations} > 0'
t "eval some images" 0 eval "$glyphs" --images "$glyphs/sample" --max-images 47 --json
json '$j->{images} == 47'
t "eval images against itself" 0 eval "$glyphs" --images index.tsv --baseline "$glyphs" --json
json '$j->{top1_agreement} == 1 && $j->{relative_error} == 0 && $j->{mean_cosine} > 0.999999'
t "intervals of images" 0 eval "$glyphs" --images "$glyphs/sample" --max-images 47 --bootstrap 100 --json
json '@{$j->{parts}} == 47 && $j->{intervals}{parts} == 47'
json '$j->{intervals}{top1}{low} <= $j->{top1} && $j->{top1} <= $j->{intervals}{top1}{high}'
json '$j->{intervals}{mean_nats}{low} < $j->{cross_entropy} && $j->{cross_entropy} < $j->{intervals}{mean_nats}{high}'
t "intervals of maps" 2 eval sam --images "$glyphs/sample" --bootstrap 10; err_has '\[eval.bad_resamples\]'
t "images and text" 2 eval "$glyphs" --images index.tsv --text text.txt; err_has '\[usage.extra_option\]'
t "a folder without images" 3 eval "$glyphs" --images plain; err_has '\[images.none\]'
t "no folder" 3 eval "$glyphs" --images nowhere; err_has '\[images.unreadable\]'
t "a bad index" 3 eval "$glyphs" --images bad-index.tsv; err_has 'line 1.*\[images.bad_index\]'
t "a text for an index" 3 prune "$glyphs" -p 2:4 -o nowhere -c text.txt
err_has 'text.txt: line 1: no image.*\[images.bad_index\]'
t "an image without label" 3 eval "$glyphs" --images no-label.tsv; err_has '\[images.no_label\]'
t "an unknown label" 3 eval "$glyphs" --images unknown-label.tsv; err_has 'nobody.*\[images.unknown_label\]'
t "a text for a classifier" 2 eval "$glyphs" --text text.txt; err_has '\[run.needs_images\]'
t "a prompt for a classifier" 2 run "$glyphs" --prompt a; err_has 'name images.*\[run.needs_images\]'

t "prune a classifier" 0 prune "$glyphs" -p 2:4 -o g24 -q; t "verify it" 0 verify g24 --strict -q
t "one shot costs something" 0 eval g24 --images "$glyphs/sample" --baseline "$glyphs" --json
json '$j->{top1} < $j->{baseline_top1} && $j->{top1} > 0.5 && $j->{mean_kl} > 0'
t "its zeros written out" 0 convert g24 --dense -o g24-dense -q
t "are the same model" 0 eval g24 --images "$glyphs/sample" --baseline g24-dense --compute f32 --json
json '$j->{top1_agreement} == 1 && $j->{relative_error} < 1e-5'
t "one shot of 64:2:8" 0 prune "$glyphs" -p 64:2:8 -o g64 -q
t "costs more" 0 eval g64 --images "$glyphs/sample" --json; json '$j->{top1} < 0.5'

t "bench a classifier" 0 bench "$glyphs" -r 1 --json
json '$j->{images} == 31 && $j->{batch_tokens_per_s} > 0 && $j->{single_tokens_per_s} > 0'
t "bench its patterns" 0 bench "$glyphs" --patterns 2:4 --images "$glyphs/sample" --max-images 94 -r 1
out_has 'top-1'; out_has '^2:4 .*0\.'
t "bench an image encoder's patterns" 0 bench sam --patterns 2:4 --images no-label.tsv -r 1 --json
json '$j->{pattern} eq "2:4" ? $j->{mean_cosine} < 1 : !defined $j->{mean_cosine}'

t "embeddings" 0 run sam letter.png "$images/rgb.png"; out_has '^  embedding 16x8x8, root mean square'
t "embeddings in a file" 0 run sam letter.png "$images/rgb.png" -o e.safetensors --json
json '$j->{output} eq "e.safetensors" && $j->{images}[1]{embedding_shape}[0] == 16'
if [ "$(wc -c <e.safetensors)" -ge $((2 * 16 * 64 * 4)) ]; then ok; else bad "too few bytes"; fi
t "the file says what it is" 0 info e.safetensors; out_has '^parameters +2048 '
t "not over a file" 1 run sam letter.png -o e.safetensors; err_has '\[file.exists\]'
t "prune an image encoder" 0 prune sam -p 2:4 -o s24 -q; t "verify it" 0 verify s24 --strict -q
t "embeddings against dense" 0 eval s24 --images no-label.tsv --baseline sam
out_has '^cosine +mean 0\.'; out_has '^error +0?\.?[0-9]'
t "embeddings against dense, JSON" 0 eval s24 --images no-label.tsv --baseline sam --json
json '$j->{mean_cosine} < 1 && $j->{mean_cosine} > 0 && $j->{relative_error} > 0 && !defined $j->{top1}'
t "another shape" 2 eval sam --images no-label.tsv --baseline "$glyphs"; err_has '\[eval.shape_differs\]'
cp -r sam no-processor && rm no-processor/preprocessor_config.json
t "no preprocessor_config.json" 3 run no-processor letter.png; err_has '\[preprocessor.missing\]'
no_leftovers
